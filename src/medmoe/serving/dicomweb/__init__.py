"""DICOM in, DICOM out: a question about an instance of the operator's DICOMweb server."""
