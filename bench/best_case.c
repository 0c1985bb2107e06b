/*
 * Loaded in front of the C library it sets TCP_NODELAY on every TCP socket, and has the kernel keep more than five
 * connections that wait to be accepted: what the original clamsmtpd would reach if it did so itself. Without the
 * first it waits for delayed acknowledgements, without the second some of 50 clients for SYNs that are sent again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int set_nodelay(int descriptor)
{
    int saved = errno, on = 1;

    /* On a socket that is none of TCP it fails, and that is all. */
    if (descriptor >= 0)
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    errno = saved;
    return descriptor;
}

int socket(int family, int type, int protocol)
{
    static int (*real)(int, int, int);

    if (!real)
        real = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    int descriptor = real(family, type, protocol);
    if (family == AF_INET || family == AF_INET6)
        set_nodelay(descriptor);
    return descriptor;
}

int accept(int listener, struct sockaddr *address, socklen_t *length)
{
    static int (*real)(int, struct sockaddr *, socklen_t *);

    if (!real)
        real = (int (*)(int, struct sockaddr *, socklen_t *))dlsym(RTLD_NEXT, "accept");
    return set_nodelay(real(listener, address, length));
}

int accept4(int listener, struct sockaddr *address, socklen_t *length, int flags)
{
    static int (*real)(int, struct sockaddr *, socklen_t *, int);

    if (!real)
        real = (int (*)(int, struct sockaddr *, socklen_t *, int))dlsym(RTLD_NEXT, "accept4");
    return set_nodelay(real(listener, address, length, flags));
}

int listen(int listener, int backlog)
{
    static int (*real)(int, int);

    if (!real)
        real = (int (*)(int, int))dlsym(RTLD_NEXT, "listen");
    return real(listener, backlog < SOMAXCONN ? SOMAXCONN : backlog);
}
