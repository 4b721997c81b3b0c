// The Python module: importing it runs the registrations of the operators linked into it. Uses the
// limited API only, so one build serves every Python 3.10 and later.
#include <Python.h>

#ifndef USE_CUDA
#include <stdexcept>

#include "../cpu/isa.h"

namespace {

// Calls function() and makes its std::invalid_argument a ValueError.
template <class Function>
PyObject* with_errors(Function&& function) {
  try {
    return function();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyObject* instruction_set(PyObject*, PyObject*) {
  return with_errors(
      [] { return PyUnicode_FromString(rcnn_ext::name_of(rcnn_ext::active_isa())); });
}

// The names in ascending order, the best of this processor last.
PyObject* instruction_sets(PyObject*, PyObject*) {
  return with_errors([] {
    const int best = static_cast<int>(rcnn_ext::best_isa());
    PyObject* names = PyList_New(0);
    for (int level = 0; names && level <= best; ++level) {
      PyObject* name = PyUnicode_FromString(rcnn_ext::name_of(static_cast<rcnn_ext::Isa>(level)));
      if (!name || PyList_Append(names, name) != 0) Py_CLEAR(names);
      Py_XDECREF(name);
    }
    return names;
  });
}

PyObject* use_instruction_set(PyObject*, PyObject* name) {
  PyObject* utf8 = PyUnicode_AsUTF8String(name);
  if (!utf8) return nullptr;
  PyObject* const result = with_errors([&] {
    rcnn_ext::use_isa(PyBytes_AsString(utf8));
    Py_INCREF(Py_None);
    return Py_None;
  });
  Py_DECREF(utf8);
  return result;
}

PyMethodDef kMethods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "The instruction set that kernels use."},
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "The instruction sets of this processor, ascending."},
    {"use_instruction_set", use_instruction_set, METH_O, "Choose an instruction set by its name."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
#define RCNN_METHODS kMethods
#else
#define RCNN_METHODS nullptr
#endif

#define RCNN_CONCATENATE_(a, b) a##b
#define RCNN_CONCATENATE(a, b) RCNN_CONCATENATE_(a, b)
#define RCNN_STRINGIFY_(a) #a
#define RCNN_STRINGIFY(a) RCNN_STRINGIFY_(a)

PyMODINIT_FUNC RCNN_CONCATENATE(PyInit_, TORCH_EXTENSION_NAME)(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   RCNN_STRINGIFY(TORCH_EXTENSION_NAME),
                                   nullptr,
                                   -1,
                                   RCNN_METHODS,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
