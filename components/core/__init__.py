"""What every stage needs and what knows nothing of models or records: settings, files, processes, errors."""
