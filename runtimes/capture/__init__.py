"""From a phone photo of a paper ECG to an upright, flat page: the printed grid is the ruler."""
