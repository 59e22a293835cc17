/*
 * A stand-in for the hypervisor below the genuine xenstored, loaded with LD_PRELOAD. Tests only.
 *
 * It takes the place of the few functions of libxenctrl, libxenevtchn and libxengnttab that the C
 * xenstored of Xen 4.17 calls. Its world is the directory XENSTORED_STANDIN:
 *   domain.N    domain N lives while this file is there
 *   ring.N      the page on which domain N speaks to xenstored (its grant reference 1)
 *   events      a datagram socket, xenstored's: each datagram is a u32, the port that has an event
 *   events.N    the same, domain N's
 *   xsd_port, xsd_kva   what the files of these names in /proc/xen say
 * It never checks what xenstored hands it. Built and started by tests/src/genuine_xenstored.rs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096u
#define VIRQ_PORT 1u       /* where «a domain died» arrives */
#define DOMAIN_PORT 0x100u /* domain N's channel is DOMAIN_PORT + N */

static char not_null; /* handles that hold nothing point here */

static void world(char *path, size_t size, const char *name, unsigned number)
{
	const char *root = getenv("XENSTORED_STANDIN");
	char file[64];

	snprintf(file, sizeof(file), name, number);
	snprintf(path, size, "%s/%s", root ? root : ".", file);
}

/* libxenctrl */

xc_interface *xc_interface_open(xentoollog_logger *log, xentoollog_logger *domlog, unsigned flags)
{
	return (xc_interface *)&not_null;
}

int xc_interface_close(xc_interface *xc)
{
	return 0;
}

int xc_domain_getinfo(xc_interface *xc, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
	struct stat status;
	char path[512];

	world(path, sizeof(path), "domain.%u", first);
	if (first != 0 && stat(path, &status) != 0)
		return 0;
	memset(info, 0, sizeof(*info));
	info->domid = first;
	info->running = 1;
	return 1;
}

/* libxenevtchn */

struct xenevtchn_handle {
	int socket;
};

static void address(struct sockaddr_un *where, const char *name, unsigned number)
{
	memset(where, 0, sizeof(*where));
	where->sun_family = AF_UNIX;
	world(where->sun_path, sizeof(where->sun_path), name, number);
}

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *log, unsigned int flags)
{
	struct xenevtchn_handle *handle = calloc(1, sizeof(*handle));
	struct sockaddr_un own;

	if (!handle)
		return NULL;
	address(&own, "events", 0);
	unlink(own.sun_path);
	handle->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (handle->socket < 0 || bind(handle->socket, (void *)&own, sizeof(own)) != 0) {
		perror("stand-in: events");
		free(handle);
		return NULL;
	}
	return handle;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *log, int fd, unsigned int flags)
{
	return xenevtchn_open(log, flags);
}

int xenevtchn_fd(xenevtchn_handle *handle)
{
	return handle->socket;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *handle, unsigned int virq)
{
	return VIRQ_PORT;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *handle, uint32_t domid,
						     evtchn_port_t remote)
{
	return DOMAIN_PORT + domid;
}

int xenevtchn_unbind(xenevtchn_handle *handle, evtchn_port_t port)
{
	return 0;
}

int xenevtchn_notify(xenevtchn_handle *handle, evtchn_port_t port)
{
	struct sockaddr_un peer;
	uint32_t word = port;

	if (port < DOMAIN_PORT)
		return 0;
	address(&peer, "events.%u", port - DOMAIN_PORT);
	/* A peer that is not there, or that has an event already, needs none. */
	(void)!sendto(handle->socket, &word, sizeof(word), MSG_DONTWAIT, (void *)&peer, sizeof(peer));
	return 0;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *handle)
{
	uint32_t port;

	return recv(handle->socket, &port, sizeof(port), MSG_DONTWAIT) == sizeof(port) ? (int)port : -1;
}

int xenevtchn_unmask(xenevtchn_handle *handle, evtchn_port_t port)
{
	return 0;
}

/* libxengnttab */

xengnttab_handle *xengnttab_open(struct xentoollog_logger *log, unsigned flags)
{
	return (xengnttab_handle *)&not_null;
}

int xengnttab_close(xengnttab_handle *handle)
{
	return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *handle, uint32_t count)
{
	return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *handle, uint32_t domid, uint32_t ref, int prot)
{
	char path[512];
	void *page;
	int fd;

	world(path, sizeof(path), "ring.%u", domid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	page = mmap(NULL, PAGE, prot, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(xengnttab_handle *handle, void *start, uint32_t count)
{
	return munmap(start, (size_t)count * PAGE);
}

/* libc: /proc/xen is not there, and limits can't be raised without root */

static const char *elsewhere(const char *path, char *buffer, size_t size)
{
	const char *name = NULL;

	if (strcmp(path, "/proc/xen/xsd_port") == 0)
		name = "xsd_port";
	else if (strcmp(path, "/proc/xen/xsd_kva") == 0 || strcmp(path, "/dev/xen/xenbus_backend") == 0)
		name = "xsd_kva";
	if (!name)
		return path;
	world(buffer, size, name, 0);
	return buffer;
}

#define OPEN(function)                                                                             \
	int function(const char *path, int flags, ...)                                             \
	{                                                                                          \
		static int (*genuine)(const char *, int, ...);                                     \
		char buffer[512];                                                                  \
		va_list rest;                                                                      \
		int mode;                                                                          \
                                                                                                   \
		if (!genuine)                                                                      \
			genuine = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #function);    \
		va_start(rest, flags);                                                             \
		mode = va_arg(rest, int);                                                          \
		va_end(rest);                                                                      \
		return genuine(elsewhere(path, buffer, sizeof(buffer)), flags, mode);              \
	}
OPEN(open)
OPEN(open64)

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	return 0;
}
