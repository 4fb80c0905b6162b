"""Builds what is deployed on AWS, and runs it here as AWS would."""
