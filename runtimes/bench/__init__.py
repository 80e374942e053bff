"""What a bundle costs on the machine at hand: time, memory, energy, and how it holds up when it gets hot."""
