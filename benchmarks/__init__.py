"""One file for each claim; what several share is here, too."""
