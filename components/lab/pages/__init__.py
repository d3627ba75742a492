"""The pages of docs/results, written from stored results: one module for each page."""
