/* Asks a DNS server on 127.0.0.1 over TCP for some seconds, and prints one line of JSON. Options as dnsperf has them:

     tcp_load -p PORT -d FILE [-l SECONDS] [-c CONNECTIONS] [-n QUERIES] [-q PIPELINED]

   -d  a file of queries, "name. TYPE" on each line, asked over and over
   -l  seconds to ask (4)
   -c  connections that are open at once (20)
   -n  queries for each connection, which is then closed, and another one opened; 0: for as long as it goes on (1)
   -q  queries that are written together; the next ones when all have their answers (1)

   The output: {"seconds", "answered", "lost", "connections", "broken", "rate", "latency": {"mean", "p50", "p99"},
   "codes": {"NOERROR": 1, ...}}. lost: queries without an answer in TIMEOUT seconds, or whose connection was closed;
   broken: such connections, and those that could not be made. latency: microseconds, with the time to connect.

   The client closes first, as resolvers do, so that its side has the TIME_WAIT. Its source addresses are those of
   127.0.1.0/24 in turn: one address has no more than 28,000 ports. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  TIMEOUT = 2,           /* seconds */
  LONGEST = 2 + 12 + 255 + 4, /* bytes of a query behind its length */
  MOST_PIPELINED = 1000,
  MOST_CONNECTIONS = 1000,
  ROOM = 1 << 18,        /* bytes of answers that are taken at once */
  SLOWEST = TIMEOUT * 1000000,
};

struct query {
  uint16_t size;
  uint8_t data[LONGEST];
};

struct connection {
  int fd;                /* -1: none */
  int left;              /* queries that it may ask yet; below 0: any number */
  int asked, answered;   /* of those that were written together */
  double begun;          /* when they were written, or the connection was begun */
  size_t filled;
  uint8_t *buffer;
  uint8_t seen[MOST_PIPELINED];
};

static const char *CODES[16] = {"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "6", "7",
                                "8", "9", "10", "11", "12", "13", "14", "15"};
static const struct { const char *name; uint16_t number; } TYPES[] = {
    {"A", 1}, {"NS", 2}, {"CNAME", 5}, {"SOA", 6}, {"PTR", 12}, {"MX", 15}, {"TXT", 16}, {"AAAA", 28}, {"SRV", 33}};

static struct query *queries;
static size_t query_count, next_query;
static int port, per_connection = 1, pipelined = 1, epoll;
static long answered, lost, opened, broken, codes[16];
static double waited;
static uint32_t latencies[SLOWEST + 1];

static void fail(const char *what, const char *detail) {
  fprintf(stderr, "tcp_load: %s: %s\n", what, detail);
  exit(2);
}

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec + at.tv_nsec / 1e9;
}

/* Write a query for a line of the file, with an ID of 0 and RD set. */
static int encode(struct query *query, char *line) {
  char *name = strtok(line, " \t\n"), *type = strtok(NULL, " \t\n");
  if (!name || !type || strlen(name) > 254) return 0;
  uint8_t *to = query->data;
  memset(to, 0, 2 + 12);
  to[4] = 1; /* RD */
  to[7] = 1; /* one question */
  to += 2 + 12;
  for (char *label = strtok(name, "."); label; label = strtok(NULL, ".")) {
    size_t size = strlen(label);
    if (size > 63) return 0;
    *to++ = size;
    memcpy(to, label, size);
    to += size;
  }
  *to++ = 0;
  for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
    if (!strcasecmp(type, TYPES[i].name)) {
      uint16_t tail[2] = {htons(TYPES[i].number), htons(1)};
      memcpy(to, tail, 4);
      query->size = to + 4 - query->data;
      uint16_t length = htons(query->size - 2);
      memcpy(query->data, &length, 2);
      return 1;
    }
  return 0;
}

static void read_queries(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file) fail(path, strerror(errno));
  char line[512], copy[512];
  size_t room = 0;
  while (fgets(line, sizeof line, file)) {
    if (query_count == room && !(queries = realloc(queries, (room = room * 2 + 1024) * sizeof *queries)))
      fail(path, "no memory");
    strcpy(copy, line);
    if (!encode(&queries[query_count], line)) fail("no query of a known type", copy);
    query_count++;
  }
  fclose(file);
  if (!query_count) fail(path, "no queries");
}

static void shut(struct connection *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
}

/* Give up a connection with what is still due on it. */
static void give_up(struct connection *c) {
  lost += c->asked - c->answered;
  broken++;
  c->asked = c->answered = 0;
  shut(c);
}

static void open_one(struct connection *c) {
  static unsigned source;
  struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(port)};
  from.sin_addr.s_addr = htonl(0x7f000101u + source++ % 250);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  struct timeval limit = {.tv_sec = TIMEOUT};
  int on = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd < 0) fail("socket", strerror(errno));
  setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* for connect(2) too */
  c->left = per_connection ? per_connection : -1;
  c->filled = 0;
  opened++;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  if (bind(c->fd, (struct sockaddr *)&from, sizeof from) || connect(c->fd, (struct sockaddr *)&to, sizeof to) ||
      epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
    give_up(c);
}

/* Write the next queries together, on a new connection if the old one has had its number. */
static void ask(struct connection *c) {
  static uint8_t data[MOST_PIPELINED * LONGEST];
  size_t size = 0;
  c->begun = now();
  c->asked = c->answered = 0;
  if (c->fd >= 0 && !c->left) shut(c);
  if (c->fd < 0) open_one(c);
  if (c->fd < 0) return;
  int count = c->left < 0 || c->left > pipelined ? pipelined : c->left;
  for (int id = 0; id < count; id++) {
    struct query *query = &queries[next_query++ % query_count];
    memcpy(data + size, query->data, query->size);
    data[size + 2] = id >> 8;
    data[size + 3] = id;
    size += query->size;
  }
  memset(c->seen, 0, count);
  c->asked = count;
  if (c->left > 0) c->left -= count;
  if (send(c->fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) give_up(c);
}

static void note(struct connection *c, const uint8_t *message, double at) {
  int id = message[0] << 8 | message[1];
  if (id >= c->asked || c->seen[id] || !(message[2] & 0x80)) fail("an answer to nothing that was asked", "");
  c->seen[id] = 1;
  c->answered++;
  answered++;
  codes[message[3] & 15]++;
  double took = at - c->begun;
  waited += took;
  latencies[took * 1e6 < SLOWEST ? (int)(took * 1e6) : SLOWEST]++;
}

/* Take what has come; true if all that was asked has its answer. */
static int take(struct connection *c) {
  ssize_t got = recv(c->fd, c->buffer + c->filled, ROOM - c->filled, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  if (got <= 0) {
    give_up(c);
    return 1;
  }
  c->filled += got;
  size_t at = 0;
  double when = now();
  while (c->filled - at >= 2) {
    size_t size = c->buffer[at] << 8 | c->buffer[at + 1];
    if (c->filled - at - 2 < size) break;
    if (size < 12) fail("an answer that is too short", "");
    note(c, c->buffer + at + 2, when);
    at += 2 + size;
  }
  memmove(c->buffer, c->buffer + at, c->filled -= at);
  return c->answered == c->asked;
}

static int percentile(double part) {
  long wanted = answered * part, passed = 0;
  for (int i = 0; i <= SLOWEST; i++)
    if ((passed += latencies[i]) > wanted) return i;
  return 0;
}

static void print(double seconds) {
  printf("{\"seconds\": %.3f, \"answered\": %ld, \"lost\": %ld, \"connections\": %ld, \"broken\": %ld, ", seconds,
         answered, lost, opened, broken);
  printf("\"rate\": %.1f, \"latency\": {\"mean\": %.1f, \"p50\": %d, \"p99\": %d}, \"codes\": {", answered / seconds,
         answered ? waited / answered * 1e6 : 0, percentile(0.5), percentile(0.99));
  const char *comma = "";
  for (int i = 0; i < 16; i++)
    if (codes[i]) {
      printf("%s\"%s\": %ld", comma, CODES[i], codes[i]);
      comma = ", ";
    }
  printf("}}\n");
}

static int number(const char *text, int least, int most, char option) {
  char *end, what[] = {'-', option, 0};
  long value = strtol(text, &end, 10);
  if (*end || end == text || value < least || value > most) fail(what, text);
  return value;
}

int main(int argc, char **argv) {
  int connections = 20, seconds = 4, option;
  while ((option = getopt(argc, argv, "p:d:l:c:n:q:")) != -1) switch (option) {
      case 'p': port = number(optarg, 1, 65535, 'p'); break;
      case 'd': read_queries(optarg); break;
      case 'l': seconds = number(optarg, 1, 3600, 'l'); break;
      case 'c': connections = number(optarg, 1, MOST_CONNECTIONS, 'c'); break;
      case 'n': per_connection = number(optarg, 0, 1 << 30, 'n'); break;
      case 'q': pipelined = number(optarg, 1, MOST_PIPELINED, 'q'); break;
      default: return 2;
    }
  if (!port || !queries || optind < argc) fail("needed", "-p PORT -d FILE");
  epoll = epoll_create1(EPOLL_CLOEXEC);
  struct connection *all = calloc(connections, sizeof *all);
  struct epoll_event events[64];
  double begun = now(), until = begun + seconds, checked = begun, at;
  for (int i = 0; i < connections; i++) {
    all[i].fd = -1;
    all[i].buffer = malloc(ROOM);
    if (!all[i].buffer) fail("buffers", "no memory");
    ask(&all[i]);
  }
  while ((at = now()) < until) {
    int count = epoll_wait(epoll, events, 64, 100);
    for (int i = 0; i < count; i++)
      if (take(events[i].data.ptr)) ask(events[i].data.ptr);
    if (at - checked < 0.1) continue;
    checked = at;
    for (int i = 0; i < connections; i++)
      if (all[i].fd < 0 || at - all[i].begun > TIMEOUT) {
        if (all[i].fd >= 0) give_up(&all[i]);
        ask(&all[i]);
      }
  }
  print(now() - begun);
  return 0;
}
