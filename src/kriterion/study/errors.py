"""What a user can mend."""


class StudyError(ValueError):
    """Bad input to a study; the message says what, and what to do. The command ends with exit code 2."""
