/* Asks a server over UDP and prints what came of it as JSON.
 *
 *     drive PORT FILE SECONDS RATE
 *
 * FILE has "name. TYPE" in each line, as for dnsperf; its queries are asked over and over. With a RATE, they leave at
 * even distances, so many a second, and a thread waits for the responses. With 0, as many as the server takes leave in
 * batches, with at most WINDOW under way. The time of an answer, in microseconds, is from before the query is sent to
 * when the kernel has the response for us (SO_TIMESTAMPNS), so that what keeps this process waiting counts little.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, WINDOW = 128, IDS = 65536, SIZE = 4096, PATIENCE_MS = 200 };

struct query {
    unsigned char *data;
    size_t size;
};

static const struct {
    const char *name;
    int number;
} TYPES[] = {{"A", 1}, {"PTR", 12}, {"TXT", 16}, {"AAAA", 28}, {"SRV", 33}};

static struct query *queries;
static size_t query_count;
static int64_t sent_at[IDS]; /* 0: none under way */
static uint32_t *times;      /* nanoseconds of each answer */
static size_t answered, room;
static int sock;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void *grown(void *memory, size_t size)
{
    memory = realloc(memory, size);
    if (!memory)
        fail("memory");
    return memory;
}

static int type_number(const char *name)
{
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
        if (!strcmp(name, TYPES[i].name))
            return TYPES[i].number;
    fprintf(stderr, "drive: no number for the type %s\n", name);
    exit(1);
}

/* A query with RD set. Returns its size. */
static size_t make_query(unsigned char *data, const char *name, int type)
{
    unsigned char *at = data + 12;

    memcpy(data, "\0\0\1\0\0\1\0\0\0\0\0\0", 12);
    for (size_t size; (size = strcspn(name, ".")); name += size + (name[size] == '.')) {
        *at++ = size;
        memcpy(at, name, size);
        at += size;
    }
    memcpy(at, (unsigned char[]){0, type >> 8, type, 0, 1}, 5);
    return at + 5 - data;
}

static void read_queries(const char *path)
{
    FILE *file = fopen(path, "r");
    char name[256], type[16];
    unsigned char data[sizeof name + 18];

    if (!file)
        fail(path);
    while (fscanf(file, "%255s %15s", name, type) == 2) {
        size_t size = make_query(data, name, type_number(type));

        if (!(query_count & (query_count - 1)))
            queries = grown(queries, (query_count ? query_count * 2 : 1) * sizeof *queries);
        queries[query_count] = (struct query){grown(NULL, size), size};
        memcpy(queries[query_count++].data, data, size);
    }
    fclose(file);
    if (!query_count) {
        fprintf(stderr, "drive: %s has no queries\n", path);
        exit(1);
    }
}

/* The next query's bytes, with the number as its ID. Each is sent before its turn comes again. */
static struct query *numbered(size_t number)
{
    struct query *query = &queries[number % query_count];

    query->data[0] = number >> 8;
    query->data[1] = number;
    return query;
}

static void note(const unsigned char *data, size_t size, int64_t at)
{
    int64_t begun;

    if (size < 12)
        return;
    begun = __atomic_exchange_n(&sent_at[data[0] << 8 | data[1]], 0, __ATOMIC_RELAXED);
    if (!begun)
        return;
    if (answered == room)
        times = grown(times, (room = room ? room * 2 : IDS) * sizeof *times);
    times[answered++] = at > begun ? (uint32_t)(at - begun) : 0;
}

static int64_t stamp(struct msghdr *header)
{
    struct cmsghdr *part = CMSG_FIRSTHDR(header);

    if (part && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_TIMESTAMPNS) {
        struct timespec time;

        memcpy(&time, CMSG_DATA(part), sizeof time);
        return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
    }
    return now(CLOCK_REALTIME);
}

/* Take what has come, and wait for the first of it. 0: nothing came in time. */
static int receive(void)
{
    static unsigned char buffers[BATCH][SIZE], controls[BATCH][64];
    static struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    int count;

    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){buffers[i], SIZE};
        messages[i].msg_hdr = (struct msghdr){
            .msg_iov = &parts[i], .msg_iovlen = 1, .msg_control = controls[i], .msg_controllen = sizeof controls[i]};
    }
    count = recvmmsg(sock, messages, BATCH, MSG_WAITFORONE, NULL);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail("recvmmsg");
        return 0;
    }
    for (int i = 0; i < count; i++)
        note(buffers[i], messages[i].msg_len, stamp(&messages[i].msg_hdr));
    return count;
}

static size_t drive_freely(int64_t end)
{
    static struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH] = {0};
    size_t sent = 0, lost = 0;

    while (now(CLOCK_MONOTONIC) < end) {
        size_t under_way = sent - answered - lost;
        int wanted = WINDOW - under_way < BATCH ? WINDOW - under_way : BATCH;
        int64_t at = now(CLOCK_REALTIME);

        for (int i = 0; i < wanted; i++) {
            struct query *query = numbered(sent + i);

            parts[i] = (struct iovec){query->data, query->size};
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
            sent_at[(sent + i) % IDS] = at;
        }
        if (wanted) {
            int count = sendmmsg(sock, messages, wanted, 0);

            if (count < 0)
                fail("sendmmsg");
            sent += count;
        }
        if (!receive())
            lost = sent - answered; /* nothing for so long: what is under way will not come */
    }
    while (answered + lost < sent && receive())
        ;
    return sent;
}

static volatile int finished;

static void *wait_for_responses(void *unused)
{
    (void)unused;
    while (receive() || !finished)
        ;
    return NULL;
}

static size_t drive_evenly(int64_t end, double rate)
{
    pthread_t receiver;
    size_t sent = 0;
    int64_t begin = now(CLOCK_MONOTONIC), due;

    prctl(PR_SET_TIMERSLACK, 1);
    if (pthread_create(&receiver, NULL, wait_for_responses, NULL))
        fail("pthread_create");
    while ((due = begin + (int64_t)(sent * 1e9 / rate)) < end) {
        struct timespec until = {due / 1000000000, due % 1000000000};
        struct query *query = numbered(sent);

        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        __atomic_store_n(&sent_at[sent % IDS], now(CLOCK_REALTIME), __ATOMIC_RELAXED);
        if (send(sock, query->data, query->size, 0) < 0)
            fail("send");
        sent++;
    }
    finished = 1;
    pthread_join(receiver, NULL);
    return sent;
}

static int by_size(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;

    return (a > b) - (a < b);
}

static double quantile(double share)
{
    size_t rank = (size_t)(share * answered);

    return times[rank < answered ? rank : answered - 1] / 1000.0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {0, PATIENCE_MS * 1000};
    int on = 1, buffer = 4 << 20;
    int64_t begin, end;
    double rate;
    size_t sent;

    if (argc != 5) {
        fprintf(stderr, "usage: drive PORT FILE SECONDS RATE\n");
        return 2;
    }
    read_queries(argv[2]);
    server.sin_port = htons(atoi(argv[1]));
    sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&server, sizeof server) ||
        setsockopt(sock, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) ||
        setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer) ||
        setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
        fail("socket");
    rate = atof(argv[4]);
    begin = now(CLOCK_MONOTONIC);
    end = begin + (int64_t)(atof(argv[3]) * 1e9);
    sent = rate > 0 ? drive_evenly(end, rate) : drive_freely(end);
    qsort(times, answered, sizeof *times, by_size);
    printf("{\"sent\": %zu, \"answered\": %zu, \"seconds\": %.6f", sent, answered, (end - begin) / 1e9);
    if (answered)
        printf(", \"p50\": %.1f, \"p99\": %.1f, \"longest\": %.1f", quantile(0.5), quantile(0.99), quantile(1.0));
    printf("}\n");
    return 0;
}
