"""What passes between processes and comes from files: Arrow records, prompts, text files."""
