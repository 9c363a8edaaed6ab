"""Everything that a run can be asked to do: declared once, read from job files and flags."""
