/*
 * The loops over whole buffers of records: find them, sum them, stamp them,
 * gather them from a file.
 *
 * The twin in _kernel_numpy.py does the same with numpy; kernel.py says what
 * each function is for, and the tests hold the two against each other. Nothing
 * outside the given buffers is read or written: every offset and length is
 * checked first, sizes are compared without sums that could overflow. The GIL
 * is given up around every loop.
 *
 * The formats are those of OpenZFS, include/sys/zfs_ioctl.h (struct
 * dmu_replay_record, DRR_*_PAYLOAD_SIZE) and module/zcommon/zfs_fletcher.c.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define HEADER 312
#define CHECKSUM 280

enum { BEGIN, OBJECT, FREEOBJECTS, WRITE, FREE, END, WRITE_BYREF, SPILL, WRITE_EMBEDDED, OBJECT_RANGE, REDACT };
enum { BAD_TYPE = 1, BAD_LENGTH, BAD_ALIGNMENT };

static const uint64_t MIX[4] = {
    0x9E3779B97F4A7C15u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u, 0xD6E8FEB86659FD93u,
};

typedef struct { uint64_t a, b, c, d; } sum_t;

static inline uint32_t swap32(uint32_t x)
{
    return x >> 24 | (x >> 8 & 0xff00) | (x << 8 & 0xff0000) | x << 24;
}

static inline uint64_t swap64(uint64_t x)
{
    return (uint64_t)swap32((uint32_t)x) << 32 | swap32((uint32_t)(x >> 32));
}

static inline uint32_t get32(const uint8_t *p, int swap)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return swap ? swap32(x) : x;
}

static inline uint64_t get64(const uint8_t *p, int swap)
{
    uint64_t x;
    memcpy(&x, p, 8);
    return swap ? swap64(x) : x;
}

static inline void put64(uint8_t *p, uint64_t x, int swap)
{
    if (swap)
        x = swap64(x);
    memcpy(p, &x, 8);
}

/* fletcher-4 */

static inline sum_t absorb_words(sum_t s, const uint8_t *p, uint64_t bytes, int swap)
{
    const uint8_t *end = p + (bytes & ~(uint64_t)3);
    uint64_t a = s.a, b = s.b, c = s.c, d = s.d;
    if (swap) {
        for (; p != end; p += 4) {
            a += get32(p, 1); b += a; c += b; d += c;
        }
    } else {
        for (; p != end; p += 4) {
            a += get32(p, 0); b += a; c += b; d += c;
        }
    }
    return (sum_t){a, b, c, d};
}

/* The state after n more words whose own sum is t: fletcher.py, combine(). */
static inline sum_t combine(sum_t s, sum_t t, uint64_t n)
{
    uint64_t t2 = n * (n + 1) / 2;
    uint64_t t3 = t2 % 3 == 0 ? t2 / 3 * (n + 2) : t2 * ((n + 2) / 3);
    return (sum_t){
        s.a + t.a,
        s.b + n * s.a + t.b,
        s.c + n * s.b + t2 * s.a + t.c,
        s.d + n * s.c + t2 * s.b + t3 * s.a + t.d,
    };
}

static const sum_t ZERO;

/*
 * Four sums side by side, of every fourth word each. A word that lane j counted
 * t times into its b is s = 4t - j words from the end: its weights in b, c, d,
 * which are s, s(s+1)/2, s(s+1)(s+2)/6, follow from the lane's as in join().
 */
#if defined(__GNUC__) && defined(__x86_64__)
#define LANES 4
#define WIDE (4 * LANES)
#define AT_LEAST 256 /* bytes: below, joining the lanes costs more than they save */

typedef uint64_t lanes_t __attribute__((vector_size(8 * LANES)));
typedef uint32_t words_t __attribute__((vector_size(WIDE), aligned(1), may_alias));

static sum_t join(const uint64_t *a, const uint64_t *b, const uint64_t *c, const uint64_t *d)
{
    sum_t s = {0, 0, 0, 0};
    for (uint64_t j = 0; j < LANES; j++) {
        s.a += a[j];
        s.b += 4 * b[j] - j * a[j];
        s.c += 16 * c[j] - (6 + 4 * j) * b[j] + j * (j - 1) / 2 * a[j];
        s.d += 64 * d[j] - (48 + 16 * j) * c[j] + (4 + 4 * j + 2 * j * j) * b[j] - (j == 3) * a[j];
    }
    return s;
}

__attribute__((target("avx2"))) static sum_t rounds(const uint8_t *p, uint64_t count)
{
    lanes_t a = {0}, b = {0}, c = {0}, d = {0};
    for (; count; count--, p += WIDE) {
        a += __builtin_convertvector(*(const words_t *)p, lanes_t);
        b += a; c += b; d += c;
    }
    return join((uint64_t *)&a, (uint64_t *)&b, (uint64_t *)&c, (uint64_t *)&d);
}

static sum_t (*wide)(const uint8_t *, uint64_t);

static void choose(void)
{
    wide = __builtin_cpu_supports("avx2") ? rounds : NULL;
}
#else
#define WIDE 4
#define AT_LEAST UINT64_MAX
static sum_t (*const wide)(const uint8_t *, uint64_t) = NULL;
static void choose(void) {}
#endif

static inline sum_t absorb(sum_t s, const uint8_t *p, uint64_t bytes, int swap)
{
    if (wide && !swap && bytes >= AT_LEAST) {
        uint64_t n = bytes / WIDE;
        s = combine(s, wide(p, n), n * (WIDE / 4));
        p += n * WIDE;
        bytes -= n * WIDE;
    }
    return absorb_words(s, p, bytes, swap);
}

static inline uint64_t mix(sum_t s)
{
    return s.a * MIX[0] + s.b * MIX[1] + s.c * MIX[2] + s.d * MIX[3];
}

/* Records */

static inline uint64_t round8(uint64_t x) { return (x + 7) & ~(uint64_t)7; }

static uint64_t payload_size(const uint8_t *p, uint32_t type, int swap)
{
    uint64_t size;
    switch (type) {
    case BEGIN:
        return get32(p + 4, swap);
    case OBJECT:
        size = get32(p + 36, swap);
        return size ? size : round8(get32(p + 28, swap));
    case WRITE:
        return get64(p + (p[50] ? 96 : 32), swap);
    case SPILL:
        size = get64(p + 40, swap);
        return size ? size : get64(p + 16, swap);
    case WRITE_EMBEDDED:
        return round8(get32(p + 52, swap));
    default:
        return 0;
    }
}

/* Buffers */

typedef struct {
    Py_buffer data, offsets, lengths, checks, sums, state;
    Py_ssize_t n;
    int swap;
} job_t;

static void release(job_t *job)
{
    Py_buffer *all[] = {&job->data, &job->offsets, &job->lengths, &job->checks, &job->sums, &job->state};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->obj)
            PyBuffer_Release(all[i]);
}

static int sized(const Py_buffer *buffer, Py_ssize_t count, Py_ssize_t width)
{
    return !buffer->obj || (buffer->len / width == count && buffer->len % width == 0);
}

/*
 * Every record must lie in the data; with `whole` its payload too, else only
 * its header.
 */
static int valid(const job_t *job, int whole, int contiguous)
{
    const int64_t *offsets = job->offsets.buf, *lengths = job->lengths.buf;
    for (Py_ssize_t i = 0; i < job->n; i++) {
        int64_t size = whole ? lengths[i] : HEADER;
        if (lengths[i] < HEADER || lengths[i] & 3 || offsets[i] < 0 || size > job->data.len
            || offsets[i] > job->data.len - size)
            return 0;
        if (contiguous && i && offsets[i] != offsets[i - 1] + lengths[i - 1])
            return 0;
    }
    return 1;
}

static int ready(job_t *job, int whole, int contiguous)
{
    job->n = job->offsets.len / 8;
    if (sized(&job->offsets, job->n, 8) && sized(&job->lengths, job->n, 8) && sized(&job->checks, job->n, 8)
        && sized(&job->sums, job->n, 32) && sized(&job->state, 4, 8) && valid(job, whole, contiguous))
        return 1;
    PyErr_SetString(PyExc_ValueError, "record outside the buffer, or arrays that do not match");
    return 0;
}

/* walk */

typedef struct {
    Py_ssize_t n, stop, error;
    int code;
} walk_t;

static int refuse(uint32_t type, uint64_t size, uint64_t most)
{
    if (type > REDACT)
        return BAD_TYPE;
    if (size > most)
        return BAD_LENGTH;
    return size & 3 ? BAD_ALIGNMENT : 0;
}

static walk_t do_walk(const uint8_t *data, Py_ssize_t start, Py_ssize_t end, int swap, uint64_t max_payload,
                      uint64_t max_begin, Py_ssize_t room, int64_t *offsets, uint8_t *types, int64_t *lengths)
{
    walk_t w = {0, start, 0, 0};
    while (end - w.stop >= HEADER && w.n < room) {
        const uint8_t *p = data + w.stop;
        uint32_t type = get32(p, swap);
        uint64_t size = payload_size(p, type, swap);
        w.code = refuse(type, size, type == BEGIN ? max_begin : max_payload);
        w.error = w.code ? w.stop : 0;
        if (w.code || (uint64_t)(end - w.stop - HEADER) < size)
            break;
        offsets[w.n] = w.stop;
        types[w.n] = (uint8_t)type;
        lengths[w.n++] = HEADER + (int64_t)size;
        w.stop += HEADER + (Py_ssize_t)size;
        if (type == BEGIN || type == END)
            break;
    }
    return w;
}

static PyObject *walk(PyObject *self, PyObject *args)
{
    job_t job = {0};
    Py_buffer types = {0};
    Py_ssize_t start, end;
    unsigned long long max_payload, max_begin;
    PyObject *result = NULL;
    walk_t w;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnpKKw*w*w*", &job.data, &start, &end, &job.swap, &max_payload, &max_begin,
                          &job.offsets, &types, &job.lengths))
        return NULL;
    job.n = job.offsets.len / 8;
    if (start < 0 || start > end || end > job.data.len || types.len != job.n || job.lengths.len != job.offsets.len) {
        PyErr_SetString(PyExc_ValueError, "range outside the buffer");
    } else {
        Py_BEGIN_ALLOW_THREADS
        w = do_walk(job.data.buf, start, end, job.swap, max_payload, max_begin, job.n, job.offsets.buf, types.buf,
                    job.lengths.buf);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("nnni", w.n, w.stop, w.error, w.code);
    }
    PyBuffer_Release(&types);
    release(&job);
    return result;
}

/* verify, check */

static inline const uint8_t *record(const job_t *job, Py_ssize_t i, uint64_t *payload_bytes)
{
    *payload_bytes = (uint64_t)((const int64_t *)job->lengths.buf)[i] - HEADER;
    return (const uint8_t *)job->data.buf + ((const int64_t *)job->offsets.buf)[i];
}

/* What record i is on its own, from the sums of its header and its payload. */
static inline void summarize(const job_t *job, Py_ssize_t i, sum_t head, sum_t payload, uint64_t bytes)
{
    ((uint64_t *)job->checks.buf)[i] = mix(combine(head, payload, bytes / 4));
    memcpy((uint8_t *)job->sums.buf + 32 * i, &payload, 32);
}

/* A field of zeros is not compared: kernel.py, verify(). */
static inline int differs(const uint8_t *p, sum_t s, int swap)
{
    uint64_t a = get64(p, swap), b = get64(p + 8, swap), c = get64(p + 16, swap), d = get64(p + 24, swap);
    return (a | b | c | d) && (a != s.a || b != s.b || c != s.c || d != s.d);
}

static Py_ssize_t do_verify(const job_t *job)
{
    Py_ssize_t i;
    sum_t s, t;
    memcpy(&s, job->state.buf, 32);
    for (i = 0; i < job->n; i++) {
        uint64_t bytes;
        const uint8_t *p = record(job, i, &bytes);
        sum_t payload, head = absorb(ZERO, p, CHECKSUM, job->swap);
        t = combine(s, head, CHECKSUM / 4);
        if (get32(p, job->swap) != BEGIN && differs(p + CHECKSUM, t, job->swap))
            break;
        t = absorb(t, p + CHECKSUM, HEADER - CHECKSUM, job->swap);
        payload = absorb(ZERO, p + HEADER, bytes, job->swap);
        s = combine(t, payload, bytes / 4);
        summarize(job, i, head, payload, bytes);
    }
    memcpy(job->state.buf, &s, 32);
    return i < job->n ? i : -1;
}

static void do_check(const job_t *job)
{
    for (Py_ssize_t i = 0; i < job->n; i++) {
        uint64_t bytes;
        const uint8_t *p = record(job, i, &bytes);
        sum_t head = absorb(ZERO, p, CHECKSUM, job->swap);
        summarize(job, i, head, absorb(ZERO, p + HEADER, bytes, job->swap), bytes);
    }
}

static PyObject *verify(PyObject *self, PyObject *args)
{
    job_t job = {0};
    Py_ssize_t bad;
    PyObject *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*pw*w*w*", &job.data, &job.offsets, &job.lengths, &job.swap, &job.state,
                          &job.checks, &job.sums))
        return NULL;
    if (ready(&job, 1, 1)) {
        Py_BEGIN_ALLOW_THREADS
        bad = do_verify(&job);
        Py_END_ALLOW_THREADS
        result = PyLong_FromSsize_t(bad);
    }
    release(&job);
    return result;
}

static PyObject *check(PyObject *self, PyObject *args)
{
    job_t job = {0};
    PyObject *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*pw*w*", &job.data, &job.offsets, &job.lengths, &job.swap, &job.checks,
                          &job.sums))
        return NULL;
    if (ready(&job, 1, 0)) {
        Py_BEGIN_ALLOW_THREADS
        do_check(&job);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&job);
    return result;
}

/* stamp */

static void put_sum(uint8_t *p, sum_t s, int swap)
{
    put64(p, s.a, swap);
    put64(p + 8, s.b, swap);
    put64(p + 16, s.c, swap);
    put64(p + 24, s.d, swap);
}

static void do_stamp(const job_t *job)
{
    sum_t s, payload;
    memcpy(&s, job->state.buf, 32);
    for (Py_ssize_t i = 0; i < job->n; i++) {
        uint64_t bytes;
        uint8_t *p = (uint8_t *)record(job, i, &bytes);
        uint32_t type = get32(p, job->swap);
        if (type == END)
            put_sum(p + 8, s, job->swap);
        s = absorb(s, p, CHECKSUM, job->swap);
        if (type != BEGIN)
            put_sum(p + CHECKSUM, s, job->swap);
        s = absorb(s, p + CHECKSUM, HEADER - CHECKSUM, job->swap);
        memcpy(&payload, (const uint8_t *)job->sums.buf + 32 * i, 32);
        s = combine(s, payload, bytes / 4);
    }
    memcpy(job->state.buf, &s, 32);
}

static PyObject *stamp(PyObject *self, PyObject *args)
{
    job_t job = {0};
    PyObject *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*y*y*pw*", &job.data, &job.offsets, &job.lengths, &job.sums, &job.swap,
                          &job.state))
        return NULL;
    if (ready(&job, 0, 0)) {
        Py_BEGIN_ALLOW_THREADS
        do_stamp(&job);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&job);
    return result;
}

static PyObject *fletcher4(PyObject *self, PyObject *args)
{
    job_t job = {0};
    PyObject *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*pw*", &job.data, &job.swap, &job.state))
        return NULL;
    if (job.data.len & 3 || job.state.len != 32) {
        PyErr_SetString(PyExc_ValueError, "not a multiple of 4 bytes");
    } else {
        sum_t s;
        Py_BEGIN_ALLOW_THREADS
        memcpy(&s, job.state.buf, 32);
        s = absorb(s, job.data.buf, (uint64_t)job.data.len, job.swap);
        memcpy(job.state.buf, &s, 32);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&job);
    return result;
}

/* gather */

typedef struct { Py_buffer places, sizes, out, to; } reads_t;

/* All sizes fit their places in `out`, and a file's offset. */
static int fitting(const reads_t *reads, Py_ssize_t n)
{
    const int64_t *places = reads->places.buf, *sizes = reads->sizes.buf, *to = reads->to.buf;
    for (Py_ssize_t i = 0; i < n; i++)
        if (places[i] < 0 || sizes[i] < 0 || to[i] < 0 || sizes[i] > reads->out.len || to[i] > reads->out.len - sizes[i]
            || places[i] > INT64_MAX - sizes[i])
            return 0;
    return 1;
}

/* The first that the file ends before, or n. `error`: what the system said. */
static Py_ssize_t do_gather(int fd, const reads_t *reads, Py_ssize_t n, int *error)
{
    const int64_t *places = reads->places.buf, *sizes = reads->sizes.buf, *to = reads->to.buf;
    for (Py_ssize_t i = 0; i < n; i++) {
        int64_t done = 0;
        while (done < sizes[i]) {
            ssize_t got = pread(fd, (uint8_t *)reads->out.buf + to[i] + done, (size_t)(sizes[i] - done),
                                (off_t)(places[i] + done));
            if (got == 0)
                return i;
            if (got > 0) {
                done += got;
            } else if (errno != EINTR) {
                *error = errno;
                return i;
            }
        }
    }
    return n;
}

static PyObject *gather(PyObject *self, PyObject *args)
{
    reads_t reads = {0};
    int fd, error = 0;
    PyObject *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "iy*y*w*y*", &fd, &reads.places, &reads.sizes, &reads.out, &reads.to))
        return NULL;
    Py_ssize_t n = reads.places.len / 8, stop = n;
    if (!sized(&reads.places, n, 8) || !sized(&reads.sizes, n, 8) || !sized(&reads.to, n, 8) || !fitting(&reads, n)) {
        PyErr_SetString(PyExc_ValueError, "reads that do not fit");
    } else {
        Py_BEGIN_ALLOW_THREADS
        stop = do_gather(fd, &reads, n, &error);
        Py_END_ALLOW_THREADS
        errno = error;
        result = error ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromSsize_t(stop < n ? stop : -1);
    }
    PyBuffer_Release(&reads.places);
    PyBuffer_Release(&reads.sizes);
    PyBuffer_Release(&reads.out);
    PyBuffer_Release(&reads.to);
    return result;
}

/* CRC-64 as ECMA-182 has it, reflected: see zap_hash.py. */
static uint64_t crc_table[256];

static void fill_crc_table(void)
{
    for (int byte = 0; byte < 256; byte++) {
        uint64_t value = (uint64_t)byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xC96C5795D7870F42u : 0);
        crc_table[byte] = value;
    }
}

static PyObject *crc64(PyObject *self, PyObject *args)
{
    Py_buffer bytes;
    unsigned long long start;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*K", &bytes, &start))
        return NULL;
    const uint8_t *at = bytes.buf;
    uint64_t value = start;
    for (Py_ssize_t i = 0; i < bytes.len; i++)
        value = value >> 8 ^ crc_table[(value ^ at[i]) & 0xFF];
    PyBuffer_Release(&bytes);
    return PyLong_FromUnsignedLongLong(value);
}

static PyMethodDef methods[] = {
    {"crc64", crc64, METH_VARARGS, NULL},
    {"gather", gather, METH_VARARGS, NULL},
    {"walk", walk, METH_VARARGS, NULL},
    {"verify", verify, METH_VARARGS, NULL},
    {"check", check, METH_VARARGS, NULL},
    {"stamp", stamp, METH_VARARGS, NULL},
    {"fletcher4", fletcher4, METH_VARARGS, NULL},
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
    .m_name = "_kernel",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    choose();
    fill_crc_table();
    return PyModuleDef_Init(&module);
}
