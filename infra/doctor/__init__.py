"""`bucketbell doctor`: looks at each leg of an installation by itself, and says what to mend first."""
