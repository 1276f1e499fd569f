/* files FOLDER COUNT BYTES: writes so many photos of so many bytes, and their captions, each kind by a thread of its own:
 * what the kernel takes for the files alone. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct files {
    const char *folder, *extension, *content;
    long count;
    size_t bytes;
};

static void *write_files(void *given) {
    const struct files *files = given;
    char path[4096];
    for (long number = 0; number < files->count; number++) {
        snprintf(path, sizeof path, "%s/%05ld.%s", files->folder, number, files->extension);
        int file = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
        if (file < 0 || write(file, files->content, files->bytes) != (ssize_t)files->bytes || close(file) != 0) {
            perror(path);
            exit(1);
        }
    }
    return NULL;
}

int main(int count, char **given) {
    if (count != 4) {
        fprintf(stderr, "usage: files FOLDER COUNT BYTES\n");
        return 2;
    }
    size_t bytes = strtoul(given[3], NULL, 10);
    char *photo = malloc(bytes);
    if (photo == NULL) {
        return 1;
    }
    memset(photo, 'x', bytes);
    struct files photos = {given[1], "jpg", photo, strtol(given[2], NULL, 10), bytes};
    struct files captions = {given[1], "txt", "word", photos.count, 4};
    pthread_t thread;
    if (pthread_create(&thread, NULL, write_files, &captions) != 0) {
        return 1;
    }
    write_files(&photos);
    return pthread_join(thread, NULL) != 0;
}
