"""`bucketbell connect`: sets a bucket up so that its uploads reach the host."""
