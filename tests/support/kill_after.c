/* Preloaded into a process: kills it right after its KILL_AFTER-th rename, link, unlink, rmdir or fsync below KILL_FOLDER.
   Every such call is appended to KILL_LOG, so that a run with KILL_AFTER=0 counts them.
   With KILL_PID, the calls of that process and of all that it starts are counted together, git's and MLflow's among
   them, and that process is killed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static int is_ours(const char *call, int folder, const char *path)
{
    const char *wanted = getenv("KILL_FOLDER");
    char base[PATH_MAX] = "", link[64], whole[2 * PATH_MAX + 2];
    if (!wanted || !path) return 0;
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else {
        if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    if (strncmp(whole, wanted, strlen(wanted)) != 0 || strstr(whole, "__pycache__")) return 0;
    if (getenv("KILL_PID"))  /* the removal of a journal is the end of a transaction */
        return !strstr(whole, "/.prefect/") && !strstr(whole, "/.dvc/tmp/")
            && (!strstr(whole, "/mlflow.db") || strcmp(call, "unlink") == 0);
    return !strstr(whole, "/.git/") && !strstr(whole, "/mlflow.db");
}

static int count_lines(int file)
{
    char part[4096];
    ssize_t length, lines = 0;
    lseek(file, 0, SEEK_SET);
    while ((length = read(file, part, sizeof part)) > 0)
        for (ssize_t i = 0; i < length; i++) lines += part[i] == '\n';
    return (int)lines;
}

static void after(const char *call, const char *path)
{
    static int calls = 0;
    const char *log = getenv("KILL_LOG"), *limit = getenv("KILL_AFTER"), *victim = getenv("KILL_PID");
    int number = __sync_add_and_fetch(&calls, 1);
    int file = log ? open(log, O_RDWR | O_CREAT | O_APPEND, 0644) : -1;
    if (file >= 0) {
        flock(file, LOCK_EX);
        dprintf(file, "%s %s\n", call, path);
        if (victim) number = count_lines(file);
        close(file);
    }
    if (!limit || atoi(limit) != number) return;
    kill(victim ? atoi(victim) : getpid(), SIGKILL);
    if (!victim || atoi(victim) == getpid()) pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define DONE(ours, call, path) do { if (result == 0 && (ours)) after(call, path); return result; } while (0)

int rename(const char *from, const char *to)
{ int ours = is_ours("rename", AT_FDCWD, to), result = REAL(rename)(from, to); DONE(ours, "rename", to); }
int renameat(int from_folder, const char *from, int to_folder, const char *to)
{ int ours = is_ours("rename", to_folder, to), result = REAL(renameat)(from_folder, from, to_folder, to); DONE(ours, "rename", to); }
int link(const char *from, const char *to)
{ int ours = is_ours("link", AT_FDCWD, to), result = REAL(link)(from, to); DONE(ours, "link", to); }
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{ int ours = is_ours("link", to_folder, to), result = REAL(linkat)(from_folder, from, to_folder, to, flags); DONE(ours, "link", to); }
int unlink(const char *path)
{ int ours = is_ours("unlink", AT_FDCWD, path), result = REAL(unlink)(path); DONE(ours, "unlink", path); }
int unlinkat(int folder, const char *path, int flags)
{ int ours = is_ours("unlink", folder, path), result = REAL(unlinkat)(folder, path, flags); DONE(ours, "unlink", path); }
int rmdir(const char *path)
{ int ours = is_ours("rmdir", AT_FDCWD, path), result = REAL(rmdir)(path); DONE(ours, "rmdir", path); }
int fsync(int file)
{
    char link[64], path[PATH_MAX] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) path[length] = 0;
    int ours = is_ours("fsync", AT_FDCWD, path), result = REAL(fsync)(file);
    DONE(ours, "fsync", path);
}
