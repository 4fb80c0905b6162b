"""What runs on Lambda, and what every host shares: entries, and a folder for each subject. Never imports `infra`."""
