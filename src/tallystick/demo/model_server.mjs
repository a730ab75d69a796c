// A small real model behind the part of the Ollama interface that the demo needs.
//
//   node model_server.mjs --engine DIR --model FILE.gguf --name NAME --digest SHA256 [--threads N] [--port P]
//
// llama.cpp does the work (node-llama-cpp, installed in DIR/node_modules). Answers GET /api/version and /api/tags,
// POST /api/chat, and POST /v1/chat/completions as OpenAI-compatible servers do, on loopback only. When it is ready it prints one line, "ready http://127.0.0.1:PORT".
// It ends when its standard input ends, so that it cannot outlive the program that started it.
// One request is answered at a time; what is not needed (tools, images, pulling models) is not here.

import http from "node:http";
import path from "node:path";
import { statSync } from "node:fs";
import { parseArgs } from "node:util";
import { pathToFileURL } from "node:url";

const BODY_BYTES_MAX = 1 << 20;
const ANSWER_TOKENS_MAX = 512;
const CONTEXT_TOKENS = 2048;
const ROLES = ["system", "user", "assistant"];

const text = { type: "string" };
const { values: args } = parseArgs({
  options: { engine: text, model: text, name: text, digest: text, threads: text, port: text },
});
const engine = path.join(args.engine, "node_modules", "node-llama-cpp", "dist", "index.js");
const { getLlama, LlamaChatSession } = await import(pathToFileURL(engine));

// maxThreads matters: with the default, a two-core machine answers fifty times slower.
// For macOS on arm64 there is a prebuilt library with Metal only (not tried).
const gpu = process.platform === "darwin" && process.arch === "arm64" ? "metal" : false;
const llama = await getLlama({ gpu, build: "never", maxThreads: Number(args.threads ?? 2) });
const model = await llama.loadModel({ modelPath: args.model });
const context = await model.createContext({ contextSize: CONTEXT_TOKENS, sequences: 1 });

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// --- the model ---------------------------------------------------------------------------------------------

let last = Promise.resolve(); // the model has one sequence: requests queue behind each other

function inTurn(work) {
  const mine = last.then(work);
  last = mine.catch(() => {});
  return mine;
}

const grammars = new Map();

async function grammarFor(format) {
  if (format === undefined || format === null || format === "") return undefined;
  const key = JSON.stringify(format);
  if (!grammars.has(key)) {
    const made = format === "json" ? llama.getGrammarFor("json") : llama.createGrammarForJsonSchema(format);
    grammars.set(key, await made);
  }
  return grammars.get(key);
}

function historyOf(messages) {
  return messages.map(({ role, content }) =>
    role === "assistant"
      ? { type: "model", response: [content] }
      : { type: role, text: content },
  );
}

async function answer({ messages, format, options = {} }, { signal, onText }) {
  const grammar = await grammarFor(format);
  const sequence = context.getSequence();
  const session = new LlamaChatSession({ contextSequence: sequence, autoDisposeSequence: true });
  try {
    session.setChatHistory(historyOf(messages.slice(0, -1)));
    let chunks = 0;
    const result = await session.promptWithMeta(messages.at(-1).content, {
      grammar,
      signal,
      maxTokens: Math.min(options.num_predict > 0 ? options.num_predict : ANSWER_TOKENS_MAX, ANSWER_TOKENS_MAX),
      temperature: options.temperature ?? 0,
      seed: options.seed,
      onTextChunk(chunk) {
        chunks += 1;
        onText?.(chunk);
      },
    });
    return {
      text: result.responseText,
      doneReason: result.stopReason === "maxTokens" ? "length" : "stop",
      promptTokens: model.tokenize(messages.map((m) => m.content).join("\n")).length,
      answerTokens: chunks,
    };
  } finally {
    session.dispose();
  }
}

// --- the interface -----------------------------------------------------------------------------------------

async function readJson(request) {
  const parts = [];
  let bytes = 0;
  for await (const part of request) {
    bytes += part.length;
    if (bytes > BODY_BYTES_MAX) throw new Refused(413, `more than ${BODY_BYTES_MAX} bytes`);
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString("utf8"));
  } catch {
    throw new Refused(400, "the body is not JSON");
  }
}

function checkChat(asked) {
  if (asked?.model !== args.name) throw new Refused(404, `model '${asked?.model}' not found`);
  const messages = asked.messages;
  if (!Array.isArray(messages) || messages.length === 0) throw new Refused(400, "messages is missing");
  for (const m of messages) {
    if (!ROLES.includes(m?.role) || typeof m.content !== "string") throw new Refused(400, "a message is malformed");
  }
  if (messages.at(-1).role !== "user") throw new Refused(400, "the last message is not the user's");
}

function sendJson(response, value, status = 200) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}

async function chat(request, response) {
  const asked = await readJson(request);
  checkChat(asked);
  const gone = new AbortController();
  response.on("close", () => response.writableEnded || gone.abort());

  const started = process.hrtime.bigint();
  const message = (content, rest) => ({
    model: args.name,
    created_at: new Date().toISOString(),
    message: { role: "assistant", content },
    ...rest,
  });
  const stream = asked.stream !== false;
  const sendLine = (value) => {
    if (!response.headersSent) response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.write(JSON.stringify(value) + "\n");
  };
  const onText = stream ? (chunk) => sendLine(message(chunk, { done: false })) : undefined;
  const found = await inTurn(() => answer(asked, { signal: gone.signal, onText }));
  const end = message(stream ? "" : found.text, {
    done: true,
    done_reason: found.doneReason,
    total_duration: Number(process.hrtime.bigint() - started),
    prompt_eval_count: found.promptTokens,
    eval_count: found.answerTokens,
  });
  if (!stream) return sendJson(response, end);
  sendLine(end);
  response.end();
}

function asChat(asked) {
  const format = asked.response_format;
  return {
    model: asked.model,
    messages: asked.messages,
    format: format?.type === "json_schema" ? format.json_schema?.schema : format?.type === "json_object" ? "json" : undefined,
    options: { num_predict: asked.max_tokens ?? asked.max_completion_tokens, temperature: asked.temperature, seed: asked.seed },
  };
}

async function completions(request, response) {
  const given = await readJson(request);
  const asked = asChat(given);
  checkChat(asked);
  const gone = new AbortController();
  response.on("close", () => response.writableEnded || gone.abort());
  const head = { id: `chatcmpl-${Math.floor(Math.random() * 999)}`, created: Math.floor(Date.now() / 1000), model: args.name };
  const send = (value) => {
    if (!response.headersSent) response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
  };
  const part = (delta, reason = null) =>
    ({ ...head, object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason: reason }] });
  const onText = given.stream ? (chunk) => send(part({ content: chunk })) : undefined;
  const found = await inTurn(() => answer(asked, { signal: gone.signal, onText }));
  const { promptTokens, answerTokens } = found;
  const usage = { prompt_tokens: promptTokens, completion_tokens: answerTokens, total_tokens: promptTokens + answerTokens };
  if (!given.stream) {
    const message = { role: "assistant", content: found.text };
    const choices = [{ index: 0, message, finish_reason: found.doneReason }];
    return sendJson(response, { ...head, object: "chat.completion", choices, usage });
  }
  send(part({}, found.doneReason));
  if (given.stream_options?.include_usage) send({ ...head, object: "chat.completion.chunk", choices: [], usage });
  send("[DONE]");
  response.end();
}

function tags() {
  const { size, mtime } = statSync(args.model);
  const details = { format: "gguf", family: "llama", parameter_size: "135M", quantization_level: "Q4_1" };
  return { models: [{ name: args.name, model: args.name, modified_at: mtime, size, digest: args.digest, details }] };
}

const routes = {
  "GET /api/version": (_, response) => sendJson(response, { version: "0.0.0-tallystick-demo" }),
  "GET /api/tags": (_, response) => sendJson(response, tags()),
  "POST /api/chat": chat,
  "POST /v1/chat/completions": completions,
};

const server = http.createServer(async (request, response) => {
  try {
    const route = routes[`${request.method} ${request.url}`];
    if (!route) throw new Refused(404, "not found");
    await route(request, response);
  } catch (error) {
    const isOpenAI = request.url.startsWith("/v1/");
    const said = { error: isOpenAI ? { message: error.message, type: "api_error" } : error.message };
    if (response.headersSent) response.end(isOpenAI ? `data: ${JSON.stringify(said)}\n\n` : JSON.stringify(said) + "\n");
    else sendJson(response, said, error.status ?? 500);
  }
});

server.listen(Number(args.port ?? 0), "127.0.0.1", () => {
  console.log(`ready http://127.0.0.1:${server.address().port}`);
});
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
process.on("SIGTERM", () => process.exit(0));
