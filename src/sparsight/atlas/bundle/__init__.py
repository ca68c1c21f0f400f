"""What goes in and out of an atlas as files."""
