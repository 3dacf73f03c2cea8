"""What log lines give away: new errors, bursts of errors, declared patterns."""
