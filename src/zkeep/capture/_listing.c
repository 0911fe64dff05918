/*
 * One folder: list it, take the status of each entry, and compare it with the
 * row of its inode. A tree in which nothing changed costs little more than the
 * system calls, and one in which little did costs little more than that.
 *
 * scan.py looks by itself at each entry that differs, and at all of them where
 * this one cannot tell, or is not compiled. Rows are those of previous.py.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <Python.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

/* Where the fields of a row are; see ROW. */
enum { INO = 8, SIZE = 16, MTIME = 24, CTIME = 32, OBJECT = 40, PARENT = 48, NAMES = 60, KIND = 64, ROW_SIZE = 68 };

typedef struct { size_t row, name, length; } entry_t;  /* row: `end` if it is not what a row says */

typedef struct {
    int fd;
    uint64_t device, parent;
    const uint8_t *rows;
    size_t start, end;              /* the rows of that device, ascending by inode */
    char *names;                    /* all names, with a slash behind each */
    size_t names_used, names_room;
    entry_t *entries;
    size_t count, room;
    int no_memory;
} listing_t;

static uint64_t field(const listing_t *job, size_t row, int at)
{
    uint64_t x;
    memcpy(&x, job->rows + row * ROW_SIZE + at, 8);
    return x;
}

static uint32_t short_field(const listing_t *job, size_t row, int at)
{
    uint32_t x;
    memcpy(&x, job->rows + row * ROW_SIZE + at, 4);
    return x;
}

/* The row of an inode, or `end`. `guess`: where it is often, as files of a folder are made one after the other. */
static size_t find(const listing_t *job, uint64_t inode, size_t guess)
{
    size_t low = job->start, high = job->end;
    if (guess >= low && guess < high && field(job, guess, INO) == inode)
        return guess;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (field(job, middle, INO) < inode)
            low = middle + 1;
        else
            high = middle;
    }
    return low < job->end && field(job, low, INO) == inode ? low : job->end;
}

static uint64_t nanoseconds(struct timespec at)
{
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* Whether a file is what its row says. A ctime of 0 means that it is to be read again; several names are not for here. */
static int is_same(const listing_t *job, size_t row, const struct stat *status)
{
    uint64_t changed = field(job, row, CTIME);
    return changed != 0 && changed == nanoseconds(status->st_ctim)
        && field(job, row, MTIME) == nanoseconds(status->st_mtim)
        && field(job, row, SIZE) == (uint64_t)status->st_size
        && short_field(job, row, KIND) == (status->st_mode & S_IFMT) >> 12
        && field(job, row, PARENT) == job->parent
        && (status->st_nlink == 1 || S_ISDIR(status->st_mode));
}

static int grow(void **place, size_t *room, size_t wanted, size_t size)
{
    size_t more = *room ? *room : 64;
    while (more < wanted)
        more *= 2;
    if (more == *room)
        return 1;
    void *grown = realloc(*place, more * size);
    if (grown == NULL)
        return 0;
    *place = grown;
    *room = more;
    return 1;
}

static int add(listing_t *job, const char *name, size_t row)
{
    size_t length = strlen(name);
    if (!grow((void **)&job->names, &job->names_room, job->names_used + length + 1, 1)
        || !grow((void **)&job->entries, &job->room, job->count + 1, sizeof(entry_t))) {
        job->no_memory = 1;
        return 0;
    }
    memcpy(job->names + job->names_used, name, length);
    job->names[job->names_used + length] = '/';
    job->entries[job->count++] = (entry_t){row, job->names_used, length};
    job->names_used += length + 1;
    return 1;
}

/* Whether all could be looked at; what is not there any more is missing among the entries. */
static int do_list(listing_t *job)
{
    int copy = fcntl(job->fd, F_DUPFD_CLOEXEC, 0), good = 1;
    DIR *folder = copy < 0 ? NULL : fdopendir(copy);
    struct dirent *entry;
    size_t row = job->start;

    if (folder == NULL) {
        if (copy >= 0)
            close(copy);
        return 0;
    }
    rewinddir(folder);  /* the copy shares its position with the descriptor */
    while (good && (errno = 0, entry = readdir(folder)) != NULL) {
        const char *name = entry->d_name;
        struct stat status;
        if (name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0)))
            continue;
        if (fstatat(job->fd, name, &status, AT_SYMLINK_NOFOLLOW) != 0 || (uint64_t)status.st_dev != job->device) {
            good = 0;
            break;
        }
        size_t found = find(job, (uint64_t)status.st_ino, row + 1);
        if (found < job->end)
            row = found;
        good = add(job, name, found < job->end && is_same(job, found, &status) ? found : job->end);
    }
    if (entry == NULL && errno != 0)
        good = 0;
    rewinddir(folder);
    closedir(folder);
    return good;
}

static PyObject *folder_of(const listing_t *job, size_t at)
{
    const entry_t *entry = &job->entries[at];
    return Py_BuildValue("(ny#KKI)", (Py_ssize_t)at, job->names + entry->name, (Py_ssize_t)entry->length,
                         (unsigned long long)field(job, entry->row, OBJECT),
                         (unsigned long long)field(job, entry->row, INO),
                         (unsigned int)short_field(job, entry->row, NAMES));
}

static PyObject *tuple_of(const listing_t *job)
{
    size_t length = job->names_used ? job->names_used - 1 : 0;  /* no slash behind the last */
    PyObject *names = PyBytes_FromStringAndSize(job->names, (Py_ssize_t)length);
    PyObject *numbers = PyList_New((Py_ssize_t)job->count), *folders = PyList_New(0);
    PyObject *kinds = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)job->count);
    if (names == NULL || numbers == NULL || folders == NULL || kinds == NULL)
        goto failed;
    for (size_t i = 0; i < job->count; i++) {
        size_t row = job->entries[i].row;
        int is_same = row < job->end;
        uint32_t kind = is_same ? short_field(job, row, KIND) : 0;
        PyObject *number = PyLong_FromUnsignedLongLong(is_same ? field(job, row, OBJECT) : 0);
        if (number == NULL)
            goto failed;
        PyList_SET_ITEM(numbers, (Py_ssize_t)i, number);
        PyBytes_AS_STRING(kinds)[i] = (char)kind;
        if (kind != S_IFDIR >> 12)
            continue;
        PyObject *found = folder_of(job, i);
        if (found == NULL)
            goto failed;
        int bad = PyList_Append(folders, found);
        Py_DECREF(found);
        if (bad)
            goto failed;
    }
    return Py_BuildValue("(NNNN)", names, numbers, kinds, folders);
failed:
    Py_XDECREF(names);
    Py_XDECREF(numbers);
    Py_XDECREF(kinds);
    Py_XDECREF(folders);
    return NULL;
}

static PyObject *compared(PyObject *self, PyObject *args)
{
    listing_t job = {0};
    unsigned long long device, parent;
    Py_ssize_t start, end;
    Py_buffer rows;
    PyObject *result = NULL;
    int good;

    (void)self;
    if (!PyArg_ParseTuple(args, "iKy*nnK", &job.fd, &device, &rows, &start, &end, &parent))
        return NULL;
    if (start < 0 || start > end || end > rows.len / ROW_SIZE) {
        PyBuffer_Release(&rows);
        PyErr_SetString(PyExc_ValueError, "rows that are not there");
        return NULL;
    }
    job.device = device;
    job.parent = parent;
    job.rows = rows.buf;
    job.start = (size_t)start;
    job.end = (size_t)end;
    Py_BEGIN_ALLOW_THREADS
    good = do_list(&job);
    Py_END_ALLOW_THREADS
    if (job.no_memory)
        PyErr_NoMemory();
    else
        result = good ? tuple_of(&job) : Py_NewRef(Py_None);
    free(job.names);
    free(job.entries);
    PyBuffer_Release(&rows);
    return result;
}

static PyMethodDef methods[] = {
    {"compared", compared, METH_VARARGS,
     "compared(fd, device, rows, start, end, parent): None if an entry cannot be had or is on another device; else the\n"
     "names of all entries with slashes between them, the object of each, 0 if it is not what a row says, the kind of\n"
     "each of the others, and (index, name, object, inode, check of names) of the folders among these."},
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
    .m_name = "_listing",
    .m_methods = methods,
    .m_slots = slots,
};

/* Rows are little-endian. */
PyMODINIT_FUNC PyInit__listing(void)
{
    return PyModuleDef_Init(&module);
}
