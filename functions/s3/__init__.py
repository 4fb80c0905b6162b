"""The bucket. The only folder that may load boto3 and botocore."""
