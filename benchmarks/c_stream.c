/* The limit of push and pull: the same bytes, between buffers of the same sizes, with nothing around them.
 *
 *   c_stream server PORT WORKERS BYTES_UP BYTES_DOWN REPEATS
 *   c_stream client PORT WORKERS BYTES_UP BYTES_DOWN REPEATS
 *
 * A thread for each worker on both sides. The client prints the seconds of each repeat, from the barrier before the
 * first worker sends to the end of the last one's receiving. Blocking calls of 256 KiB, TCP_NODELAY, buffers as the
 * kernel tunes them. CALL, LOW_WATER in the environment: bytes of a call, and SO_RCVLOWAT while receiving. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static size_t up, down, call = 256 << 10, low_water = 0;
static int workers, repeats;
static pthread_barrier_t barrier;
static double *ends;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void send_all(int s, const char *data, size_t size) {
  for (size_t done = 0; done < size;) {
    size_t part = size - done < call ? size - done : call;
    ssize_t n = send(s, data + done, part, MSG_NOSIGNAL);
    if (n <= 0) die("send");
    done += n;
  }
}

static void receive_all(int s, char *into, size_t size) {
  int mark = 0;
  for (size_t done = 0; done < size;) {
    size_t left = size - done, part = left < call ? left : call;
    int wanted = left < low_water ? (int)left : (int)low_water;
    if (low_water && wanted != mark) {
      mark = wanted;
      setsockopt(s, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark);
    }
    ssize_t n = recv(s, into + done, part, low_water ? MSG_DONTWAIT : 0);
    if (n < 0 && errno == EAGAIN) {  /* a blocking call counts what it has copied already towards the mark, and sleeps */
      struct pollfd readable = {s, POLLIN, 0};
      poll(&readable, 1, -1);
      continue;
    }
    if (n <= 0) die("recv");
    done += n;
  }
}

static char *buffer(size_t size, int value) {
  char *p = malloc(size);
  if (!p) die("malloc");
  memset(p, value, size);
  return p;
}

static void no_delay(int s) {
  int on = 1;
  setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void *serve(void *argument) {
  int s = (int)(long)argument;
  char *gradients = buffer(up, 1), *parameters = buffer(down, 2);
  for (int i = 0; i < repeats; ++i) {
    receive_all(s, gradients, up);
    send_all(s, parameters, down);
  }
  return 0;
}

struct worker {
  int socket, number;
};

static void *work(void *argument) {
  struct worker *self = argument;
  char *gradients = buffer(up, 3), *parameters = buffer(down, 4);
  for (int i = 0; i < repeats; ++i) {
    pthread_barrier_wait(&barrier);
    double began = now();
    pthread_barrier_wait(&barrier);
    send_all(self->socket, gradients, up);
    receive_all(self->socket, parameters, down);
    ends[self->number] = now();
    pthread_barrier_wait(&barrier);
    if (self->number == 0) {
      double last = 0;
      for (int j = 0; j < workers; ++j) last = ends[j] > last ? ends[j] : last;
      printf("%.9f\n", last - began);
    }
  }
  return 0;
}

int main(int count, char **arguments) {
  if (count != 7) return 2;
  int server = !strcmp(arguments[1], "server");
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2])),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  workers = atoi(arguments[3]);
  up = strtoull(arguments[4], 0, 10);
  down = strtoull(arguments[5], 0, 10);
  repeats = atoi(arguments[6]);
  if (getenv("CALL")) call = strtoull(getenv("CALL"), 0, 10);
  if (getenv("LOW_WATER")) low_water = strtoull(getenv("LOW_WATER"), 0, 10);
  pthread_t threads[64];
  if (server) {
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(s, (void *)&address, sizeof address) || listen(s, workers)) die("listen");
    puts("ready");
    fflush(stdout);
    for (int i = 0; i < workers; ++i) {
      int accepted = accept(s, 0, 0);
      no_delay(accepted);
      pthread_create(&threads[i], 0, serve, (void *)(long)accepted);
    }
  } else {
    ends = calloc(workers, sizeof *ends);
    pthread_barrier_init(&barrier, 0, workers);
    for (int i = 0; i < workers; ++i) {
      struct worker *self = malloc(sizeof *self);
      *self = (struct worker){socket(AF_INET, SOCK_STREAM, 0), i};
      no_delay(self->socket);
      if (connect(self->socket, (void *)&address, sizeof address)) die("connect");
      pthread_create(&threads[i], 0, work, self);
    }
  }
  for (int i = 0; i < workers; ++i) pthread_join(threads[i], 0);
  return 0;
}
