// An empty Python module: importing it runs the registrations of the operators linked into it. Uses
// the limited API only, so one build serves every Python 3.10 and later.
#include <Python.h>

#define RCNN_CONCATENATE_(a, b) a##b
#define RCNN_CONCATENATE(a, b) RCNN_CONCATENATE_(a, b)
#define RCNN_STRINGIFY_(a) #a
#define RCNN_STRINGIFY(a) RCNN_STRINGIFY_(a)

PyMODINIT_FUNC RCNN_CONCATENATE(PyInit_, TORCH_EXTENSION_NAME)(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   RCNN_STRINGIFY(TORCH_EXTENSION_NAME),
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
