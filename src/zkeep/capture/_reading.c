/*
 * Small files read whole, many in one call and without the GIL: opened, their
 * status, birth time, flags and extended attributes taken, read, and looked at
 * once more. What is not as simple as that is left out: contents.py and
 * objects.py do the same file by file, and do it for whatever this leaves out.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <Python.h>

#if defined(__linux__)
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Those of linux/fs.h: FS_IOC_GETFLAGS, and the flags as statx(2) has them. */
#define GET_FLAGS 0x80086601
#define FLAGS (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP)
#define ROOM_OF_NAMES 4096
#define FARTHEST 9000000000LL  /* seconds from 1970 */
#define PLAIN (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)

typedef struct {
    int folder;
    const char *name;
    int done;                    /* whether all below is there */
    struct statx status;
    uint64_t flags;
    size_t start;                /* where the content begins in the buffer; its length is the status's */
    size_t xattrs, xattrs_end;   /* name NUL, length as size_t, value, and so on */
} job_t;

typedef struct {
    char *bytes;
    size_t used, room;
} buffer_t;

static int reserve(buffer_t *buffer, size_t more)
{
    size_t room = buffer->room ? buffer->room : 1 << 16;
    if (buffer->used + more <= buffer->room)
        return 1;
    while (room < buffer->used + more)
        room *= 2;
    char *grown = realloc(buffer->bytes, room);
    if (grown == NULL)
        return 0;
    buffer->bytes = grown;
    buffer->room = room;
    return 1;
}

/* Only of times that fit: see has_plain_times(). */
static long long nanoseconds(struct statx_timestamp at)
{
    return (long long)at.tv_sec * 1000000000 + at.tv_nsec;
}

static int is_plain(struct statx_timestamp at)
{
    return at.tv_sec < FARTHEST && at.tv_sec > -FARTHEST;
}

/* Whether all times fit into 64 bits of nanoseconds, as those from 1685 to 2255 do. */
static int has_plain_times(const struct statx *status)
{
    return is_plain(status->stx_atime) && is_plain(status->stx_mtime) && is_plain(status->stx_ctime)
        && (!(status->stx_mask & STATX_BTIME) || is_plain(status->stx_btime));
}

/* As fstat(2) does, whatever the mask says of basic ones: network file systems leave the access time out of it. */
static int status_of(int fd, struct statx *status)
{
    return statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, status) == 0;
}

static int is_same_time(struct statx_timestamp a, struct statx_timestamp b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static int is_same(const struct statx *a, const struct statx *b)
{
    return a->stx_mode == b->stx_mode && a->stx_size == b->stx_size
        && is_same_time(a->stx_mtime, b->stx_mtime) && is_same_time(a->stx_ctime, b->stx_ctime);
}

/* The flags that chattr sets, of those that are stored; 0 where there is no such thing. */
static uint64_t flags_of(int fd, const struct statx *status)
{
    union { int number; char room[8]; } found = {0};  /* the kernel writes an int, whatever the request says */
    if ((status->stx_attributes_mask & FLAGS) == FLAGS)
        return status->stx_attributes & FLAGS;
    return ioctl(fd, GET_FLAGS, &found) == 0 ? (uint64_t)found.number & FLAGS : 0;
}

/* All extended attributes, names with their values; 0: they are too many, or one of them cannot be had. */
static int read_xattrs(int fd, job_t *job, buffer_t *buffer)
{
    char names[ROOM_OF_NAMES + 1];
    ssize_t length = flistxattr(fd, names, ROOM_OF_NAMES);

    job->xattrs = buffer->used;
    if (length < 0 && errno != ENOTSUP)
        return 0;
    if (length > 0)
        names[length] = 0;  /* what a file system forgot behind the last name */
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(names + at) + 1) {
        size_t head = strlen(names + at) + 1, size;
        ssize_t wanted = fgetxattr(fd, names + at, NULL, 0);
        if (wanted < 0 || !reserve(buffer, head + sizeof size + (size_t)wanted))
            return 0;
        memcpy(buffer->bytes + buffer->used, names + at, head);
        buffer->used += head;
        /* A length of 0 would only ask for the length again. */
        if (wanted && fgetxattr(fd, names + at, buffer->bytes + buffer->used + sizeof size, (size_t)wanted) != wanted)
            return 0;
        size = (size_t)wanted;
        memcpy(buffer->bytes + buffer->used, &size, sizeof size);
        buffer->used += sizeof size + size;
    }
    job->xattrs_end = buffer->used;
    return 1;
}

static int read_open(int fd, job_t *job, buffer_t *buffer, uint64_t limit)
{
    struct statx after;
    size_t done = 0, size;

    if (!status_of(fd, &job->status) || !S_ISREG(job->status.stx_mode) || job->status.stx_size > limit
        || !has_plain_times(&job->status))
        return 0;
    job->flags = flags_of(fd, &job->status);
    if (!read_xattrs(fd, job, buffer))
        return 0;
    size = (size_t)job->status.stx_size;
    if (!reserve(buffer, size))
        return 0;
    job->start = buffer->used;
    while (done < size) {
        ssize_t got = pread(fd, buffer->bytes + buffer->used + done, size - done, (off_t)done);
        if (got <= 0)
            return 0;
        done += (size_t)got;
    }
    buffer->used += size;
    return status_of(fd, &after) && is_same(&job->status, &after);
}

static int read_one(job_t *job, buffer_t *buffer, uint64_t limit)
{
    size_t before = buffer->used;
    int fd = openat(job->folder, job->name, PLAIN | O_NOATIME), read;
    if (fd < 0 && errno == EPERM)
        fd = openat(job->folder, job->name, PLAIN);
    if (fd < 0)
        return 0;
    read = read_open(fd, job, buffer, limit);
    if (!read)
        buffer->used = before;
    close(fd);
    return read;
}

static PyObject *xattrs_of(const job_t *job, const buffer_t *buffer)
{
    PyObject *found = PyDict_New();
    for (size_t at = job->xattrs; found != NULL && at < job->xattrs_end;) {
        const char *name = buffer->bytes + at;
        size_t size;
        at += strlen(name) + 1;
        memcpy(&size, buffer->bytes + at, sizeof size);
        at += sizeof size;
        PyObject *key = PyBytes_FromString(name);
        PyObject *value = PyBytes_FromStringAndSize(buffer->bytes + at, (Py_ssize_t)size);
        if (key == NULL || value == NULL || PyDict_SetItem(found, key, value) < 0)
            Py_CLEAR(found);
        Py_XDECREF(key);
        Py_XDECREF(value);
        at += size;
    }
    return found;
}

/* The content, filled with zeros to whole sectors of 512 bytes. */
static PyObject *content_of(const job_t *job, const buffer_t *buffer)
{
    size_t size = (size_t)job->status.stx_size, whole = (size + 511) / 512 * 512;
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)whole);
    if (made != NULL && whole) {
        char *bytes = PyBytes_AS_STRING(made);
        memcpy(bytes, buffer->bytes + job->start, size);
        memset(bytes + size, 0, whole - size);
    }
    return made;
}

static PyObject *file_of(const job_t *job, const buffer_t *buffer)
{
    const struct statx *status = &job->status;
    PyObject *xattrs = xattrs_of(job, buffer), *content = xattrs == NULL ? NULL : content_of(job, buffer);
    if (content == NULL) {
        Py_XDECREF(xattrs);
        return NULL;
    }
    return Py_BuildValue("(KKIIIKILLLLKNN)", (unsigned long long)makedev(status->stx_dev_major, status->stx_dev_minor),
                         (unsigned long long)status->stx_ino, (unsigned int)status->stx_mode,
                         (unsigned int)status->stx_uid, (unsigned int)status->stx_gid,
                         (unsigned long long)status->stx_size, (unsigned int)status->stx_nlink,
                         nanoseconds(status->stx_atime), nanoseconds(status->stx_mtime),
                         nanoseconds(status->stx_ctime),
                         status->stx_mask & STATX_BTIME ? nanoseconds(status->stx_btime) : 0LL,
                         (unsigned long long)job->flags, xattrs, content);
}

static int jobs_of(PyObject *folders, PyObject *names, job_t *jobs, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        char *name;
        long folder = PyLong_AsLong(PyList_GET_ITEM(folders, i));
        if ((folder == -1 && PyErr_Occurred()) || PyBytes_AsStringAndSize(PyList_GET_ITEM(names, i), &name, NULL) < 0)
            return 0;
        jobs[i] = (job_t){.folder = (int)folder, .name = name};
    }
    return 1;
}

static PyObject *results(const job_t *jobs, Py_ssize_t count, const buffer_t *buffer)
{
    PyObject *found = PyList_New(count);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++) {
        PyObject *file = jobs[i].done ? file_of(&jobs[i], buffer) : Py_NewRef(Py_None);
        if (file == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, i, file);
    }
    return found;
}

static PyObject *read_files(PyObject *self, PyObject *args)
{
    PyObject *folders, *names, *found = NULL;
    unsigned long long limit, budget;
    Py_ssize_t count, read = 0;
    buffer_t buffer = {0};

    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!KK", &PyList_Type, &folders, &PyList_Type, &names, &limit, &budget))
        return NULL;
    count = PyList_GET_SIZE(names);
    if (PyList_GET_SIZE(folders) != count) {
        PyErr_SetString(PyExc_ValueError, "as many folders as names");
        return NULL;
    }
    job_t *jobs = PyMem_Calloc((size_t)count + 1, sizeof(job_t));
    if (jobs == NULL)
        return PyErr_NoMemory();
    if (jobs_of(folders, names, jobs, count)) {
        Py_BEGIN_ALLOW_THREADS
        while (read < count && buffer.used < budget) {
            jobs[read].done = read_one(&jobs[read], &buffer, limit);
            read++;
        }
        Py_END_ALLOW_THREADS
        found = results(jobs, read, &buffer);
    }
    PyMem_Free(jobs);
    free(buffer.bytes);
    return found;
}
#endif

static PyMethodDef methods[] = {
#if defined(__linux__)
    {"read_files", read_files, METH_VARARGS,
     "read_files(folders, names, limit, budget): for each file, until `budget` bytes are read, None or (device, inode,\n"
     "mode, uid, gid, size, links, atime, mtime, ctime, birth or 0, flags, extended attributes, content), the content\n"
     "filled with zeros to whole sectors; None: it is no regular file of up to `limit` bytes, or not simply read.\n"
     "The lists must not change meanwhile."},
#endif
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030D0000 && defined(Py_GIL_DISABLED)
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_reading",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__reading(void)
{
    return PyModuleDef_Init(&module);
}
