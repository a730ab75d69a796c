/* SHA-256 of many short messages at once: the leaf hashes of lines and the node hashes over pairs of hashes (RFC 6962 section 2.1).
 *
 * hashlib needs most of a microsecond around each hash. Here the loop is in C, outside the interpreter's lock, and the hash is
 * libcrypto's own, found at import: no cryptography of ours, no headers needed to build, no version bound. Where libcrypto is not
 * found the import fails and merkle.py hashes with hashlib; the results are the same bytes, which the tests compare.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <dlfcn.h>
#include <string.h>

#define HASH 32

/* SHA256_CTX of OpenSSL 1.1 and 3 has 112 bytes; what follows is room. */
typedef union { unsigned char bytes[512]; long double aligned; } context;

static int (*sha_init)(void *);
static int (*sha_update)(void *, const void *, size_t);
static int (*sha_final)(unsigned char *, void *);

static int find_libcrypto(void)
{
    /* NULL: already in the process, because hashlib or ssl were loaded */
    static const char *const names[] = {NULL, "libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib", "libcrypto.dylib"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) continue;
        *(void **)&sha_init = dlsym(library, "SHA256_Init");
        *(void **)&sha_update = dlsym(library, "SHA256_Update");
        *(void **)&sha_final = dlsym(library, "SHA256_Final");
        if (sha_init && sha_update && sha_final) return 1;
    }
    return 0;
}

static int hash(unsigned char *out, unsigned char prefix, const void *data, size_t size)
{
    context c;
    return sha_init(&c) == 1 && sha_update(&c, &prefix, 1) == 1 && sha_update(&c, data, size) == 1 && sha_final(out, &c) == 1;
}

static PyObject *finished(PyObject *result, int good)
{
    if (good) return result;
    Py_XDECREF(result);
    PyErr_SetString(PyExc_RuntimeError, "libcrypto refused to hash");
    return NULL;
}

static PyObject *leaves(PyObject *self, PyObject *arg)
{
    (void)self;
    Py_buffer view;
    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) return NULL;
    const char *at = view.buf, *end = at + view.len;
    if (view.len > 0 && end[-1] != '\n') {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "the last line does not end");
        return NULL;
    }
    Py_ssize_t count = 0;
    Py_BEGIN_ALLOW_THREADS
    for (const char *p = at; p < end; count++) p = (const char *)memchr(p, '\n', (size_t)(end - p)) + 1;
    Py_END_ALLOW_THREADS
    PyObject *result = count <= PY_SSIZE_T_MAX / HASH ? PyBytes_FromStringAndSize(NULL, count * HASH) : PyErr_NoMemory();
    if (result == NULL) {
        PyBuffer_Release(&view);
        return NULL;
    }
    unsigned char *out = (unsigned char *)PyBytes_AsString(result), *stop = out + count * HASH;
    int good = 1;
    Py_BEGIN_ALLOW_THREADS
    /* bounded by count as well: if somebody changes the mapped file meanwhile the hashes differ and nothing else happens */
    while (good && out < stop) {
        const char *newline = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;
        if (newline == NULL) newline = end;
        good = hash(out, 0, at, (size_t)(newline - at));
        at = newline < end ? newline + 1 : end;
        out += HASH;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return finished(result, good);
}

static PyObject *parents(PyObject *self, PyObject *arg)
{
    (void)self;
    Py_buffer view;
    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) return NULL;
    if (view.len % (2 * HASH)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "a row of pairs has a multiple of 64 bytes");
        return NULL;
    }
    PyObject *result = PyBytes_FromStringAndSize(NULL, view.len / 2);
    if (result == NULL) {
        PyBuffer_Release(&view);
        return NULL;
    }
    unsigned char *out = (unsigned char *)PyBytes_AsString(result);
    const unsigned char *row = view.buf;
    int good = 1;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; good && at < view.len; at += 2 * HASH, out += HASH) good = hash(out, 1, row + at, 2 * HASH);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return finished(result, good);
}

static PyMethodDef methods[] = {
    {"leaves", leaves, METH_O, "The leaf hashes of the lines of a buffer, each of which ends in a newline."},
    {"parents", parents, METH_O, "The node hashes over the pairs of an even row of hashes."},
    {NULL, NULL, 0, NULL},
};

static int load(PyObject *module)
{
    (void)module;
    if (find_libcrypto()) return 0;
    PyErr_SetString(PyExc_ImportError, "libcrypto was not found");
    return -1;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, load}, {0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_sha256", "Hashes in batches; see merkle.py.", 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sha256(void)
{
    return PyModuleDef_Init(&module);
}
