// Python module of the native selective search. NumPy in and out, no torch.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_selective_search, m) { m.doc() = "Native selective search (rcnn_ext.proposals)."; }
