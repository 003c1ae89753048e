"""Reading and writing of answers, truth and the files of a run."""
