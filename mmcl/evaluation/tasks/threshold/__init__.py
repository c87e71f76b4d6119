"""The score above which two things match, at a stated precision."""
