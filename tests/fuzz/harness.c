/* libFuzzer around a function of Python: tests/fuzz/targets.py has the targets, KDNS_FUZZ_TARGET names one.
 *
 * The interpreter is the one of this machine, without sanitizers; the modules that it loads from PYTHONPATH have them,
 * and this program has what they need at run time. KDNS_FUZZ_PYTHON is the interpreter of the virtualenv. An exception
 * that reaches us is a finding as much as one of AddressSanitizer's. */
#include <Python.h>
#include <signal.h>

static PyObject *target;

static void give_up(void)
{
    if (PyErr_Occurred())
        PyErr_Print();
    fflush(NULL);
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyConfig config;
    PyObject *module;

    (void)argc;
    (void)argv;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0; /* libFuzzer has its own */
    signal(SIGPIPE, SIG_IGN);
    if (PyStatus_Exception(PyConfig_SetBytesString(&config, &config.program_name, getenv("KDNS_FUZZ_PYTHON"))) ||
        PyStatus_Exception(Py_InitializeFromConfig(&config)))
        abort();
    PyConfig_Clear(&config);
    module = PyImport_ImportModule("tests.fuzz.targets");
    if (module == NULL)
        give_up();
    target = PyObject_CallMethod(module, "of_environment", NULL);
    Py_DECREF(module);
    if (target == NULL)
        give_up();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *input = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    PyObject *result = input != NULL ? PyObject_CallOneArg(target, input) : NULL;

    if (result == NULL)
        give_up();
    Py_DECREF(result);
    Py_DECREF(input);
    return 0;
}
