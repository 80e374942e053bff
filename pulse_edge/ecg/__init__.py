"""The ECG domain: records, paper, measurements, questions and the split of patients."""
