/* The floor: a server that only turns the QR bit of what it gets. What it spends on a query is the kernel's share. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { BATCH = 64, SIZE = 1232 };

int main(int argc, char **argv)
{
    static unsigned char buffers[BATCH][SIZE];
    static struct sockaddr_in peers[BATCH];
    static struct iovec parts[BATCH];
    static struct mmsghdr messages[BATCH];
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int sock = socket(AF_INET, SOCK_DGRAM, 0);

    own.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    if (sock < 0 || bind(sock, (struct sockaddr *)&own, sizeof own)) {
        perror("floor");
        return 1;
    }
    for (int i = 0; i < BATCH; i++) {
        parts[i].iov_base = buffers[i];
        messages[i].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_iov = &parts[i], .msg_iovlen = 1};
    }
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i].iov_len = SIZE;
            messages[i].msg_hdr.msg_namelen = sizeof peers[i];
        }
        int count = recvmmsg(sock, messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < count; i++) {
            parts[i].iov_len = messages[i].msg_len;
            buffers[i][2] |= 0x80;
        }
        for (int sent = 0; sent < count;) {
            int more = sendmmsg(sock, messages + sent, count - sent, 0);
            sent += more > 0 ? more : 1;
        }
    }
}
