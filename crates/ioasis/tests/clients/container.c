/*
 * A VFIO client that does what its arguments say, one step each, and prints what came of it, one line each: 0, a number, or
 * the name of an errno. The first argument is the path of the container, the others are steps. Names stand for descriptors.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define VFIO(nr) _IO(';', nr)
#define PAGE 4096u
#define BASE 0x200000000ull /* where the memory lies */
#define SIZE (64ull << 20)
#define WORDS 12

struct info { uint32_t argsz, flags; uint64_t iova_pgsizes; uint32_t cap_offset, pad; };
struct cap { uint16_t id, version; uint32_t next; };
struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct bitmap { uint64_t pgsize, size, data; };
struct dma_unmap { uint32_t argsz, flags; uint64_t iova, size; struct bitmap bitmap; };
struct dirty { uint32_t argsz, flags; uint64_t iova, size; struct bitmap bitmap; };
struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct name { char text[16]; int fd; void *page; uint64_t length; };

static const char *container;
static struct name names[32];
static unsigned char *memory = (void *)BASE;
static int by_i386;
static int (*perform)(int, char **);

/* What calls read and write lies below 4 GiB, so that i386 calls reach it too. */
static union { unsigned char bytes[8192]; uint64_t words[1024]; } scratch;

static long ioctl_by(int fd, unsigned long code, unsigned long argument)
{
	long result;
	if (!by_i386)
		return syscall(SYS_ioctl, fd, code, argument);
	__asm__ volatile("int $0x80" : "=a"(result) : "0"(54L), "b"((long)fd), "c"(code), "d"(argument)
			 : "memory", "r8", "r9", "r10", "r11");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* The numbers of both ABIs, and i386's arguments: an offset is two of them. */
static long call_by(long number64, long number386, long first, long second, long third, uint64_t offset)
{
	long result;
	if (!by_i386)
		return syscall(number64, first, second, third, offset);
	__asm__ volatile("int $0x80" : "=a"(result)
			 : "0"(number386), "b"(first), "c"(second), "d"(third), "S"((long)(uint32_t)offset), "D"((long)(offset >> 32))
			 : "memory", "r8", "r9", "r10", "r11");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* pread and pwrite of at most 8 bytes, which pass through the low scratch. */
static long get_at(int fd, void *value, size_t length, off_t offset)
{
	long result = call_by(SYS_pread64, 180, fd, (long)(scratch.bytes + 4096), (long)length, (uint64_t)offset);
	memcpy(value, scratch.bytes + 4096, length);
	return result;
}

static long put_at(int fd, const void *value, size_t length, off_t offset)
{
	memcpy(scratch.bytes + 4096, value, length);
	return call_by(SYS_pwrite64, 181, fd, (long)(scratch.bytes + 4096), (long)length, (uint64_t)offset);
}

static long call(int fd, unsigned nr, void *argument)
{
	return ioctl_by(fd, VFIO(nr), (unsigned long)argument);
}

static const char *name_of(int number)
{
	const char *name = strerrorname_np(number);
	return name ? name : "?";
}

/* Prints a result and what follows it. */
static int say(long result, const char *format, ...)
{
	va_list arguments;
	if (result < 0)
		printf("%s", name_of(errno));
	else
		printf("%ld", result);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	return 0;
}

static struct name *find(const char *text)
{
	for (unsigned i = 0; i < 32; i++)
		if (!strcmp(names[i].text, text))
			return &names[i];
	return NULL;
}

static struct name *bind_name(const char *text, int fd)
{
	struct name *name = find(text);
	if (!name)
		name = find("");
	snprintf(name->text, sizeof name->text, "%s", text);
	name->fd = fd;
	return name;
}

static int fd_of(const char *text)
{
	struct name *name = find(text);
	return name ? name->fd : atoi(text);
}

/* A number; +N is N bytes into the memory, @NAME+N into the BAR of a device, %NAME its descriptor. */
static uint64_t number(const char *text)
{
	if (text[0] == '%')
		return (uint64_t)fd_of(text + 1);
	if (text[0] == '+')
		return BASE + strtoull(text + 1, NULL, 0);
	if (text[0] == '@') {
		char *plus = strchr(text, '+');
		if (plus)
			*plus = 0;
		return (uintptr_t)find(text + 1)->page + (plus ? strtoull(plus + 1, NULL, 0) : 0);
	}
	return strtoull(text, NULL, 0);
}

static uint32_t flags_of(const char *text)
{
	uint32_t flags = 0;
	if (text[0] >= '0' && text[0] <= '9')
		return (uint32_t)strtoul(text, NULL, 0);
	for (; *text; text++)
		flags |= *text == 'r' ? 1 : *text == 'w' ? 2 : *text == 'v' ? 4 : 0;
	return flags;
}

static int step_open(int count, char **word)
{
	int fd;
	(void)count;
	snprintf((char *)scratch.bytes, 4096, "%s", !strcmp(word[2], "container") ? container : word[2]);
	fd = (int)call_by(SYS_open, 5, (long)scratch.bytes, O_RDWR | O_CLOEXEC, 0, 0);
	if (fd >= 0)
		bind_name(word[1], fd);
	return say(fd < 0 ? -1 : 0, "");
}

static int step_close(int count, char **word)
{
	struct name *name = find(word[1]);
	int result = close(name->fd);
	(void)count;
	if (name->page)
		munmap(name->page, name->length);
	memset(name, 0, sizeof *name);
	return say(result, "");
}

static int step_plain(int count, char **word)
{
	unsigned nr = !strcmp(word[0], "api") ? 0x64 : !strcmp(word[0], "ext") ? 0x65 : 0x66;
	return say(call(fd_of(word[1]), nr, (void *)(count > 2 ? number(word[2]) : 0)), "");
}

static int step_group(int count, char **word)
{
	uint32_t *values = (void *)scratch.bytes;
	int fd = fd_of(word[1]);
	long result;
	(void)count;
	if (!strcmp(word[0], "setc")) {
		values[0] = (uint32_t)fd_of(word[2]);
		return say(call(fd, 0x68, values), "");
	}
	if (!strcmp(word[0], "unsetc"))
		return say(call(fd, 0x69, NULL), "");
	values[0] = 8;
	values[1] = 0;
	result = call(fd, 0x67, values);
	return say(result, result < 0 ? "" : " flags=%u", values[1]);
}

/* device GROUP NAME WORD..: what follows is what GET_DEVICE_FD is asked for. */
static int step_device(int count, char **word)
{
	long fd;
	scratch.bytes[0] = 0;
	for (int i = 3; i < count; i++) {
		strcat((char *)scratch.bytes, i > 3 ? " " : "");
		strcat((char *)scratch.bytes, word[i]);
	}
	fd = call(fd_of(word[1]), 0x6a, scratch.bytes);
	if (fd >= 0)
		bind_name(word[2], (int)fd);
	return say(fd < 0 ? -1 : 0, "");
}

/* map CONTAINER FLAGS IOVA ADDRESS SIZE [ARGSZ] */
static int step_map(int count, char **word)
{
	struct dma_map *map = (void *)scratch.bytes;
	*map = (struct dma_map){ count > 6 ? (uint32_t)number(word[6]) : sizeof *map, flags_of(word[2]),
				 number(word[4]), number(word[3]), number(word[5]) };
	return say(call(fd_of(word[1]), 0x71, map), "");
}

/* unmap CONTAINER FLAGS IOVA SIZE [ARGSZ] */
static int step_unmap(int count, char **word)
{
	struct dma_unmap *unmap = (void *)scratch.bytes;
	long result;
	*unmap = (struct dma_unmap){ .argsz = count > 5 ? (uint32_t)number(word[5]) : 24, .flags = flags_of(word[2]),
				     .iova = number(word[3]), .size = number(word[4]) };
	result = call(fd_of(word[1]), 0x72, unmap);
	return say(result, " size=%#llx", (unsigned long long)unmap->size);
}

static struct cap *find_cap(struct info *info, uint32_t argsz, uint16_t id)
{
	uint32_t at = argsz >= sizeof *info ? info->cap_offset : 0;
	while (at && at + sizeof(struct cap) <= argsz) {
		struct cap *cap = (void *)((char *)info + at);
		if (cap->id == id)
			return cap;
		at = cap->next;
	}
	return NULL;
}

/* info CONTAINER ARGSZ WHAT: one thing that GET_INFO tells. */
static int step_info(int count, char **word)
{
	struct info *info = (void *)scratch.bytes;
	uint32_t argsz = (uint32_t)number(word[2]), *after;
	const char *what = count > 3 ? word[3] : "";
	struct cap *cap;
	long result;
	memset(scratch.bytes, 0, sizeof scratch.bytes);
	info->argsz = argsz;
	result = call(fd_of(word[1]), 0x70, info);
	if (result < 0)
		return say(result, "");
	if (!strcmp(what, "head"))
		return say(0, " flags=%u argsz%s cap_offset=%u", info->flags,
			   info->argsz == argsz ? " kept" : info->argsz < argsz ? " lowered" : " raised", info->cap_offset);
	if (!strcmp(what, "sizes"))
		return say(0, " %#llx", (unsigned long long)info->iova_pgsizes);
	if (!strcmp(what, "caps")) {
		printf("0 caps=");
		for (uint16_t id = 0; id < 5; id++)
			if (find_cap(info, argsz, id))
				printf("%u ", id);
		putchar('\n');
		return 0;
	}
	cap = find_cap(info, argsz, !strcmp(what, "ranges") ? 1 : !strcmp(what, "migration") ? 2 : 3);
	if (!cap)
		return say(0, " absent");
	after = (void *)(cap + 1);
	if (!strcmp(what, "avail"))
		return say(0, " %u", after[0]);
	if (!strcmp(what, "migration"))
		return say(0, " %#llx %llu", *(unsigned long long *)(after + 2), *(unsigned long long *)(after + 4));
	printf("0 ");
	for (uint32_t i = 0; i < after[0]; i++)
		printf("[%#llx %#llx]", ((unsigned long long *)(after + 2))[2 * i], ((unsigned long long *)(after + 2))[2 * i + 1]);
	putchar('\n');
	return 0;
}

/* log CONTAINER FLAGS: start is 1, stop 2. */
static int step_log(int count, char **word)
{
	struct dirty *dirty = (void *)scratch.bytes;
	(void)count;
	*dirty = (struct dirty){ .argsz = 8, .flags = (uint32_t)number(word[2]) };
	return say(call(fd_of(word[1]), 0x75, dirty), "");
}

/* bitmap CONTAINER IOVA SIZE, unmapdirty CONTAINER IOVA SIZE: one word of bits, 4 KiB each. */
static int step_bitmap(int count, char **word)
{
	static uint64_t bits;
	struct bitmap bitmap = { count > 4 ? number(word[4]) : PAGE, 8, (uintptr_t)&bits };
	struct dirty *dirty = (void *)scratch.bytes;
	struct dma_unmap *unmap = (void *)scratch.bytes;
	long result;
	bits = 0;
	if (!strcmp(word[0], "bitmap")) {
		*dirty = (struct dirty){ sizeof *dirty, 4, number(word[2]), number(word[3]), bitmap };
		result = call(fd_of(word[1]), 0x75, dirty);
	} else {
		*unmap = (struct dma_unmap){ sizeof *unmap, 1, number(word[2]), number(word[3]), bitmap };
		result = call(fd_of(word[1]), 0x72, unmap);
	}
	return say(result, result < 0 ? "" : " %#llx", (unsigned long long)bits);
}

/* ioctl NAME NR ARGUMENT */
static int step_ioctl(int count, char **word)
{
	memset(scratch.bytes, 0, sizeof scratch.bytes);
	return say(call(fd_of(word[1]), (unsigned)number(word[2]), count > 3 ? (void *)number(word[3]) : scratch.bytes), "");
}

/* native NAME NR WORD..: an IOMMUFD command of words of 32 bits, without the size, and what they are afterwards. */
static int step_native(int count, char **word)
{
	uint32_t *values = (void *)scratch.bytes;
	long result;
	memset(scratch.bytes, 0, sizeof scratch.bytes);
	values[0] = 4u * (uint32_t)(count - 2);
	for (int i = 3; i < count; i++)
		values[i - 2] = (uint32_t)number(word[i]);
	result = call(fd_of(word[1]), (unsigned)number(word[2]), values);
	if (result < 0)
		return say(result, "");
	printf("0");
	for (int i = 3; i < count; i++)
		printf(" %u", values[i - 2]);
	putchar('\n');
	return 0;
}

/* hotreset DEVICE GROUP */
static int step_hot_reset(int count, char **word)
{
	uint32_t *values = (void *)scratch.bytes;
	(void)count;
	values[0] = 16;
	values[1] = 0;
	values[2] = 1;
	values[3] = (uint32_t)fd_of(word[2]);
	return say(call(fd_of(word[1]), 0x71, values), "");
}

static off_t region(int device, unsigned index)
{
	struct region_info info = { .argsz = sizeof info, .index = index };
	return syscall(SYS_ioctl, device, VFIO(0x6c), &info) == 0 ? (off_t)info.offset : -1;
}

/* command DEVICE VALUE: the PCI command register; 6 is memory and bus mastering. */
static int step_command(int count, char **word)
{
	uint16_t value = (uint16_t)number(word[2]);
	int device = fd_of(word[1]);
	(void)count;
	return say(put_at(device, &value, 2, region(device, 7) + 4) == 2 ? 0 : -1, "");
}

/* mmap DEVICE [OFFSET LENGTH]: part of BAR 0, its first page unless told otherwise. */
static int step_mmap(int count, char **word)
{
	struct name *name = find(word[1]);
	off_t offset = region(name->fd, 0) + (off_t)(count > 2 ? number(word[2]) : 0);
	uint64_t length = count > 3 ? number(word[3]) : PAGE;
	void *page = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, name->fd, offset);
	name->length = length;
	if (page != MAP_FAILED)
		name->page = page;
	return say(page == MAP_FAILED ? -1 : 0, "");
}

/* dma DEVICE read|write IOVA: 4 KiB between memory and the device's buffer. */
static int step_dma(int count, char **word)
{
	int device = fd_of(word[1]);
	off_t bar = region(device, 0);
	uint64_t address = number(word[3]), fault = 0;
	uint32_t code = !strcmp(word[2], "read") ? 3 : 1;
	(void)count;
	if (put_at(device, &address, 8, bar) != 8 || put_at(device, &code, 4, bar + 8) != 4)
		return say(-1, "");
	for (unsigned turns = 0; code & 1; turns++) {
		if (turns > 600000)
			return say(0, " the device hangs");
		usleep(100);
		if (get_at(device, &code, 4, bar + 8) != 4)
			return say(-1, "");
	}
	if (!(code >> 31))
		return say(0, "");
	if (get_at(device, &fault, 8, bar + 16) != 8)
		return say(-1, "");
	return say(0, " fault=%#llx", (unsigned long long)fault);
}

static int step_memory(int count, char **word)
{
	unsigned char *at = (void *)number(word[1]);
	if (!strcmp(word[0], "peek"))
		return say(0, " %#x", *at);
	memset(at, (int)number(word[2]), count > 3 ? number(word[3]) : PAGE);
	return say(0, "");
}

/* status FIELD: a line of /proc/self/status, in kB. */
static int step_status(int count, char **word)
{
	char line[256];
	FILE *file = fopen("/proc/self/status", "r");
	(void)count;
	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, word[1], strlen(word[1]))) {
			fclose(file);
			return say(0, " %d", atoi(line + strlen(word[1]) + 1));
		}
	return say(0, " absent");
}

static int step_limit(int count, char **word)
{
	struct rlimit limit = { number(word[1]), number(word[1]) };
	(void)count;
	return say(setrlimit(RLIMIT_MEMLOCK, &limit), "");
}

static int step_drop(int count, char **word)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	uint32_t bit = 1u << number(word[1]);
	(void)count;
	if (syscall(SYS_capget, &header, data))
		return say(-1, "");
	data[0].effective &= ~bit;
	data[0].permitted &= ~bit;
	data[0].inheritable &= ~bit;
	return say(syscall(SYS_capset, &header, data), "");
}

/* child STEP: another process does it. */
static int step_child(int count, char **word)
{
	int status;
	pid_t child;
	fflush(stdout);
	child = fork();
	if (child == 0) {
		perform(count - 1, word + 1);
		fflush(stdout);
		_exit(0);
	}
	return waitpid(child, &status, 0) == child && status == 0 ? 0 : say(0, " the child failed");
}

/* vchild STEP: a process that has this one's memory does it, and ends. */
static int step_vchild(int count, char **word)
{
	int status;
	pid_t child;
	fflush(stdout);
	child = vfork();
	if (child == 0) {
		perform(count - 1, word + 1);
		fflush(stdout);
		_exit(0);
	}
	return waitpid(child, &status, 0) == child && status == 0 ? 0 : say(0, " the child failed");
}

struct later { int count; char **word; };

static void *perform_later(void *argument)
{
	struct later *later = argument;
	perform(later->count, later->word);
	return NULL;
}

/* thread STEP: a thread does it, and ends. */
static int step_thread(int count, char **word)
{
	struct later later = { count - 1, word + 1 };
	pthread_t thread;
	if (pthread_create(&thread, NULL, perform_later, &later))
		return say(-1, " no thread");
	pthread_join(thread, NULL);
	return 0;
}

/* private ADDRESS SIZE: memory of this process alone in the place of what is there. */
static int step_private(int count, char **word)
{
	void *at = mmap((void *)number(word[1]), number(word[2]), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	(void)count;
	return say(at == MAP_FAILED ? -1 : 0, "");
}

/* protect ADDRESS SIZE rw|r|none */
static int step_protect(int count, char **word)
{
	int protection = !strcmp(word[3], "rw") ? PROT_READ | PROT_WRITE : !strcmp(word[3], "r") ? PROT_READ : PROT_NONE;
	(void)count;
	return say(mprotect((void *)number(word[1]), number(word[2]), protection), "");
}

/* move ADDRESS SIZE TO: by mremap. */
static int step_move(int count, char **word)
{
	void *at = mremap((void *)number(word[1]), number(word[2]), number(word[2]), MREMAP_MAYMOVE | MREMAP_FIXED,
			  (void *)number(word[3]));
	(void)count;
	return say(at == MAP_FAILED ? -1 : 0, "");
}

static int step_other(int count, char **word)
{
	(void)count;
	if (!strcmp(word[0], "reset"))
		return say(call(fd_of(word[1]), 0x6f, NULL), "");
	if (!strcmp(word[0], "abi")) {
		by_i386 = !strcmp(word[1], "i386");
		return say(0, "");
	}
	if (!strcmp(word[0], "link"))
		return say(symlink(word[1], word[2]), "");
	if (!strcmp(word[0], "unlink"))
		return say(unlink(word[1]), "");
	if (!strcmp(word[0], "huge")) { /* huge SIZE: other memory in the place of the first, mostly untouched */
		int fd = memfd_create("huge", MFD_CLOEXEC);
		void *at = ftruncate(fd, (off_t)number(word[1])) ? MAP_FAILED
			: mmap(memory, number(word[1]), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0);
		return say(at == MAP_FAILED ? -1 : 0, "");
	}
	if (!strcmp(word[0], "bind")) { /* bind DEVICE IOMMUFD */
		uint32_t *values = memset(scratch.bytes, 0, sizeof scratch.bytes);
		values[0] = 16;
		values[2] = (uint32_t)fd_of(word[2]);
		return say(call(fd_of(word[1]), 0x76, values), "");
	}
	if (!strcmp(word[0], "mode")) {
		struct stat status;
		int result = stat(word[1], &status);
		return say(result, " %o", status.st_mode & 07777);
	}
	if (!strcmp(word[0], "munmap"))
		return say(munmap((void *)number(word[1]), number(word[2])), "");
	if (!strcmp(word[0], "write")) {
		int fd = open(word[1], O_WRONLY), good = fd >= 0 && write(fd, word[2], strlen(word[2])) > 0, error = errno;
		close(fd);
		errno = error;
		return say(good ? 0 : -1, "");
	}
	return say(0, " unknown step");
}

static const struct { const char *name; int (*step)(int, char **); } steps[] = {
	{ "open", step_open }, { "close", step_close }, { "api", step_plain }, { "ext", step_plain }, { "set", step_plain },
	{ "setc", step_group }, { "unsetc", step_group }, { "group", step_group }, { "device", step_device },
	{ "map", step_map }, { "unmap", step_unmap }, { "info", step_info }, { "log", step_log }, { "bitmap", step_bitmap },
	{ "unmapdirty", step_bitmap }, { "ioctl", step_ioctl }, { "native", step_native }, { "command", step_command },
	{ "mmap", step_mmap }, { "dma", step_dma }, { "fill", step_memory }, { "peek", step_memory }, { "status", step_status },
	{ "limit", step_limit }, { "drop", step_drop }, { "child", step_child },
	{ "vchild", step_vchild }, { "thread", step_thread }, { "private", step_private }, { "protect", step_protect },
	{ "move", step_move },
	{ "hotreset", step_hot_reset },
};

static int perform_step(int count, char **word)
{
	for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++)
		if (!strcmp(steps[i].name, word[0]))
			return steps[i].step(count, word);
	return step_other(count, word);
}

int main(int count, char **arguments)
{
	int fd = memfd_create("memory", MFD_CLOEXEC);
	if (ftruncate(fd, SIZE) || mmap(memory, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != memory)
		return 2;
	perform = perform_step;
	container = arguments[1];
	for (int i = 2; i < count; i++) {
		char line[512], *word[WORDS], *rest = line;
		int words = 0;
		snprintf(line, sizeof line, "%s", arguments[i]);
		while (words < WORDS && (word[words] = strsep(&rest, " ")))
			words++;
		perform(words, word);
		fflush(stdout);
	}
	return 0;
}
