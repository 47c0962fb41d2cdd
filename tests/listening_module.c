/* A module that does something whenever a row's key changes: LISTENER.DO command [argument ...] says what to do at the
 * next event of a key `fs:v...`, once. Needs no header: the server hands out its functions by name. */
#include <stddef.h>
#include <string.h>

typedef struct Context Context;
typedef struct String String;
typedef struct Reply Reply;
typedef int (*Command)(Context *, String **, int);
typedef int (*Listener)(Context *, int, const char *, String *);

static int (*GetApi)(const char *, void *);
static int (*SetModuleAttribs)(Context *, const char *, int, int);
static int (*CreateCommand)(Context *, const char *, Command, const char *, int, int, int);
static int (*SubscribeToKeyspaceEvents)(Context *, int, Listener);
static const char *(*StringPtrLen)(const String *, size_t *);
static String *(*CreateStringFromString)(Context *, const String *);
static void (*FreeString)(Context *, String *);
static Reply *(*Call)(Context *, const char *, const char *, ...);
static int (*ReplyWithLongLong)(Context *, long long);
static void (*FreeCallReply)(Reply *);

enum { WORDS_MAX = 64 };
static String *words[WORDS_MAX];
static int count;

static int listen(Context *ctx, int class, const char *event, String *key) {
    (void)class, (void)event;
    if (count == 0 || strncmp(StringPtrLen(key, NULL), "fs:v", 4) != 0) return 0;
    int n = count;
    count = 0;
    Reply *reply = Call(ctx, StringPtrLen(words[0], NULL), "!v", words + 1, (size_t)(n - 1));
    if (reply) FreeCallReply(reply);
    for (int i = 0; i < n; i++) FreeString(NULL, words[i]);
    return 0;
}

static int arm(Context *ctx, String **argv, int argc) {
    for (int i = 1; i < argc && i <= WORDS_MAX; i++) words[i - 1] = CreateStringFromString(NULL, argv[i]);
    count = argc - 1;
    return ReplyWithLongLong(ctx, count);
}

int RedisModule_OnLoad(Context *ctx, String **argv, int argc) {
    (void)argv, (void)argc;
    GetApi = (int (*)(const char *, void *))((void **)ctx)[0];
    GetApi("RedisModule_SetModuleAttribs", (void *)&SetModuleAttribs);
    GetApi("RedisModule_CreateCommand", (void *)&CreateCommand);
    GetApi("RedisModule_SubscribeToKeyspaceEvents", (void *)&SubscribeToKeyspaceEvents);
    GetApi("RedisModule_StringPtrLen", (void *)&StringPtrLen);
    GetApi("RedisModule_CreateStringFromString", (void *)&CreateStringFromString);
    GetApi("RedisModule_FreeString", (void *)&FreeString);
    GetApi("RedisModule_Call", (void *)&Call);
    GetApi("RedisModule_ReplyWithLongLong", (void *)&ReplyWithLongLong);
    GetApi("RedisModule_FreeCallReply", (void *)&FreeCallReply);
    SetModuleAttribs(ctx, "listener", 1, 1);
    /* Generic, string and hash events. */
    if (SubscribeToKeyspaceEvents(ctx, 1 << 2 | 1 << 3 | 1 << 6, listen) != 0) return 1;
    return CreateCommand(ctx, "listener.do", arm, "write", 0, 0, 0);
}
