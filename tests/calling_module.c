/* A module that calls commands as modules do, with or without a user: CALLER.CALL format command [argument ...].
 * Needs no header: the server hands out its functions by name. */
#include <stddef.h>

typedef struct Context Context;
typedef struct String String;
typedef struct Reply Reply;
typedef int (*Command)(Context *, String **, int);

static int (*GetApi)(const char *, void *);
static int (*SetModuleAttribs)(Context *, const char *, int, int);
static int (*CreateCommand)(Context *, const char *, Command, const char *, int, int, int);
static const char *(*StringPtrLen)(const String *, size_t *);
static Reply *(*Call)(Context *, const char *, const char *, ...);
static int (*ReplyWithCallReply)(Context *, Reply *);
static int (*ReplyWithError)(Context *, const char *);
static void (*FreeCallReply)(Reply *);

static int call(Context *ctx, String **argv, int argc) {
    if (argc < 3) return ReplyWithError(ctx, "ERR format and command are missing");
    const char *format = StringPtrLen(argv[1], NULL);
    const char *command = StringPtrLen(argv[2], NULL);
    Reply *reply = Call(ctx, command, format, argv + 3, (size_t)(argc - 3));
    if (!reply) return ReplyWithError(ctx, "ERR no reply");
    int status = ReplyWithCallReply(ctx, reply);
    FreeCallReply(reply);
    return status;
}

int RedisModule_OnLoad(Context *ctx, String **argv, int argc) {
    (void)argv, (void)argc;
    GetApi = (int (*)(const char *, void *))((void **)ctx)[0];
    GetApi("RedisModule_SetModuleAttribs", (void *)&SetModuleAttribs);
    GetApi("RedisModule_CreateCommand", (void *)&CreateCommand);
    GetApi("RedisModule_StringPtrLen", (void *)&StringPtrLen);
    GetApi("RedisModule_Call", (void *)&Call);
    GetApi("RedisModule_ReplyWithCallReply", (void *)&ReplyWithCallReply);
    GetApi("RedisModule_ReplyWithError", (void *)&ReplyWithError);
    GetApi("RedisModule_FreeCallReply", (void *)&FreeCallReply);
    SetModuleAttribs(ctx, "caller", 1, 1);
    return CreateCommand(ctx, "caller.call", call, "write deny-oom", 0, 0, 0);
}
