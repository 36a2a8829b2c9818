/* A disk that does not answer as long as the file exists that HUNG_DISK names: whoever opens or makes something
 * in the directory of a peer with the old program waits. To be preloaded. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_for_disk(const char *path)
{
	const struct timespec time = { 0, 20 * 1000 * 1000 };
	const char *hung = getenv("HUNG_DISK");

	while (hung && strstr(path, "/old/") && access(hung, F_OK) == 0)
		nanosleep(&time, NULL);
}

int open64(const char *path, int flags, ...)
{
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = va_arg(more, mode_t);
	va_end(more);
	wait_for_disk(path);
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
	wait_for_disk(path);
	return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
