"""What is worth telling: declared rules over figures and log lines, read from YAML."""
