/* A disk that takes 20 ms for every fdatasync(2), and tells how many there were: each adds a byte to
 * the file that SLOW_DISK_LOG names. While the file is there that SLOW_DISK_GATE names, it does not answer.
 * To be preloaded. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int fdatasync(int fd)
{
	const struct timespec time = { 0, 20 * 1000 * 1000 };
	const char *path = getenv("SLOW_DISK_LOG");
	const char *gate = getenv("SLOW_DISK_GATE");
	int log = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;

	if (log >= 0) {
		if (write(log, ".", 1) != 1)
			abort();
		close(log);
	}
	do
		nanosleep(&time, NULL);
	while (gate && access(gate, F_OK) == 0);
	return syscall(SYS_fdatasync, fd);
}
