"""What the plots of the iterations show beside the stages' metrics: picks, hard records, sources, lengths."""
