/* A kernel that refuses, for test_kernel_refuses.py: preloaded, with REFUSE=WORD,WORD,… of
 *
 *   header, queues, exclusive   flags of TUNSETIFF         length, offload   other calls about a TUN
 *   write, partial              large packets and packets without checksum, written to it
 *   segment-eio, segment-einval, segment-emsgsize, segment-no  datagrams sent in one call
 *   receive                     datagrams received in one call
 *   force                       a send buffer that is larger than anybody may have
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#define UDP_GRO 104
#endif

static int refuses(const char *word)
{
    const char *found = getenv("REFUSE");
    size_t length = strlen(word);
    while (found && (found = strstr(found, word))) {
        if (found[length] == ',' || found[length] == '\0')
            return 1;
        found += length;
    }
    return 0;
}

static int refuse(int error)
{
    errno = error;
    return -1;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    request = (unsigned int)request;
    if (request == TUNSETIFF) {
        short flags = ((struct ifreq *)argument)->ifr_flags;
        if ((flags & IFF_VNET_HDR && refuses("header")) ||
            (flags & IFF_MULTI_QUEUE && refuses("queues")) ||
            (flags & IFF_TUN_EXCL && refuses("exclusive")))
            return refuse(EINVAL);
    }
    if (request == TUNSETVNETHDRSZ && refuses("length"))
        return refuse(EINVAL);
    if (request == TUNSETOFFLOAD && refuses("offload"))
        return refuse(EINVAL);
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (count > 1 && parts[0].iov_len == sizeof(struct virtio_net_hdr)) {
        const struct virtio_net_hdr *header = parts[0].iov_base;
        if ((header->gso_type && refuses("write")) || (header->flags && refuses("partial")))
            return refuse(EINVAL);
    }
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    return real(fd, parts, count);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct cmsghdr *control = CMSG_FIRSTHDR((struct msghdr *)message);
    for (; control; control = CMSG_NXTHDR((struct msghdr *)message, control))
        if (control->cmsg_level == IPPROTO_UDP && control->cmsg_type == UDP_SEGMENT) {
            if (refuses("segment-eio"))
                return refuse(EIO);
            if (refuses("segment-einval"))
                return refuse(EINVAL);
            if (refuses("segment-emsgsize"))
                return refuse(EMSGSIZE);
            if (refuses("segment-no"))
                return refuse(EOPNOTSUPP);
        }
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return real(fd, message, flags);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if (level == IPPROTO_UDP && name == UDP_GRO && refuses("receive"))
        return refuse(ENOPROTOOPT);
    if (level == SOL_SOCKET && name == SO_SNDBUFFORCE && refuses("force"))
        return refuse(EPERM);
    int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");
    return real(fd, level, name, value, length);
}
