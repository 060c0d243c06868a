// The OpenAI Node client and the Vercel AI SDK, as an application uses them, through the gateway.
// Prints one line of JSON per check: {"name", "error"}; TEST_API_BASE_URL says where.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, Output, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const baseURL = process.env.TEST_API_BASE_URL;
const client = new OpenAI({ baseURL, apiKey: "app", maxRetries: 0 });
const model = "gpt-4o";
const says = (content) => ({ model, messages: [{ role: "user", content }] });
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } } },
  },
};

const checks = {
  "node: chat": async () => {
    const made = await client.chat.completions.create(says("hello there"));
    assert.equal(made.choices[0].message.content, "You said: hello there");
    assert.ok(made._request_id);
  },
  "node: stream": async () => {
    const options = { stream: true, stream_options: { include_usage: true } };
    let text = "", usage = null, finish = null;
    for await (const chunk of await client.chat.completions.create({ ...says("a b c"), ...options })) {
      text += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, "You said: a b c");
    assert.equal(finish, "stop");
    assert.ok(usage.total_tokens > 0);
  },
  "node: tools": async () => {
    const made = await client.chat.completions.create({ ...says("Weather in 'Paris'?"), tools: [weather] });
    const [call] = made.choices[0].message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  },
  "node: runTools": async () => {
    let seen = null;
    const run = client.chat.completions.runTools({
      ...says("Weather in 'Paris'?"),
      tools: [{
        type: "function",
        function: { ...weather.function, parse: JSON.parse, function: (args) => { seen = args.city; return "sunny"; } },
      }],
    });
    assert.match(await run.finalContent(), /sunny/);
    assert.equal(seen, "Paris");
  },
  "node: structured output": async () => {
    const schema = { type: "object", properties: { name: { type: "string" }, age: { type: "integer" } } };
    const made = await client.chat.completions.create({
      ...says("Make 'Ada', 36"),
      response_format: { type: "json_schema", json_schema: { name: "person", schema } },
    });
    assert.deepEqual(JSON.parse(made.choices[0].message.content), { name: "Ada", age: 36 });
  },
  "node: errors": async () => {
    await assert.rejects(
      client.chat.completions.create({ ...says("x"), model: "missing-model" }),
      (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && Boolean(error.requestID),
    );
  },
  "node: abort": async () => {
    const stream = await client.chat.completions.create({ ...says("be slow with many words"), stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) break;
    }
    const leaving = new AbortController();
    const asked = client.chat.completions.create({ ...says("slow words"), stream: true }, { signal: leaving.signal });
    setTimeout(() => leaving.abort(), 50);
    await assert.rejects(async () => { for await (const _ of await asked); });
    const made = await client.chat.completions.create(says("still there?"));
    assert.equal(made.choices[0].message.content, "You said: still there?");
  },
  "node: embeddings in base64": async () => {
    const ask = { model: "text-embedding-3-large", input: "one" };
    const packed = await client.embeddings.create(ask);
    const plain = await client.embeddings.create({ ...ask, encoding_format: "float" });
    packed.data[0].embedding.forEach((value, k) => assert.ok(Math.abs(value - plain.data[0].embedding[k]) < 1e-6));
  },
  "node: models": async () => {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    assert.ok(names.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  "node: responses": async () => {
    const made = await client.responses.create({ model, input: "hello there" });
    assert.equal(made.output_text, "You said: hello there");
    let last = null, number = -1;
    for await (const event of await client.responses.create({ model, input: "hello there", stream: true })) {
      assert.equal(event.sequence_number, ++number);
      last = event;
    }
    assert.equal(last.type, "response.completed");
  },
};

const provider = createOpenAICompatible({ name: "retort", baseURL, apiKey: "app", includeUsage: true });
const chat = provider(model);
const getWeather = (seen) => tool({
  description: "weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => { seen.push(city); return "sunny"; },
});

Object.assign(checks, {
  "ai sdk: generateText": async () => {
    const made = await generateText({ model: chat, prompt: "hello there" });
    assert.equal(made.text, "You said: hello there");
    assert.equal(made.finishReason, "stop");
    assert.ok(made.usage.totalTokens > 0);
  },
  "ai sdk: streamText": async () => {
    const made = streamText({ model: chat, prompt: "a b c" });
    let text = "";
    for await (const part of made.textStream) text += part;
    assert.equal(text, "You said: a b c");
    assert.equal(await made.finishReason, "stop");
    assert.ok((await made.usage).totalTokens > 0);
  },
  "ai sdk: tools": async () => {
    const seen = [];
    const made = await generateText({
      model: chat, prompt: "What is the weather in 'Paris'?", tools: { get_weather: getWeather(seen) }, stopWhen: stepCountIs(3),
    });
    assert.deepEqual(seen, ["Paris"]);
    assert.match(made.text, /sunny/);
  },
  "ai sdk: tools in a stream": async () => {
    const seen = [];
    const made = streamText({
      model: chat, prompt: "What is the weather in 'Paris'?", tools: { get_weather: getWeather(seen) }, stopWhen: stepCountIs(3),
    });
    assert.match(await made.text, /sunny/);
    assert.deepEqual(seen, ["Paris"]);
  },
  "ai sdk: structured output": async () => {
    const structured = createOpenAICompatible({ name: "retort", baseURL, apiKey: "app", supportsStructuredOutputs: true });
    const made = await generateText({
      model: structured(model), prompt: "Make 'Ada', 36",
      output: Output.object({ schema: z.object({ name: z.string(), age: z.number().int() }) }),
    });
    assert.deepEqual(made.output, { name: "Ada", age: 36 });
  },
  "ai sdk: errors": async () => {
    await assert.rejects(
      generateText({ model: provider("missing-model"), prompt: "x", maxRetries: 0 }),
      (error) => error.statusCode === 404 && /missing-model/.test(error.message),
    );
  },
  "ai sdk: abort": async () => {
    const leaving = new AbortController();
    const made = streamText({ model: chat, prompt: "be slow with many words", abortSignal: leaving.signal, onError: () => {} });
    const parts = [];
    for await (const part of made.fullStream) {
      parts.push(part.type);
      if (part.type === "text-delta") leaving.abort();
    }
    assert.equal(parts.at(-1), "abort");
  },
  "ai sdk: embed": async () => {
    const made = await embed({ model: provider.embeddingModel("text-embedding-3-small"), value: "one" });
    assert.equal(made.embedding.length, 8);
  },
});

for (const [name, check] of Object.entries(checks)) {
  let error = null;
  try {
    await Promise.race([check(), new Promise((_, late) => setTimeout(late, 30000, new Error("took 30 s")).unref())]);
  } catch (caught) {
    error = String(caught?.message ?? caught).slice(0, 300) || "failed";
  }
  console.log(JSON.stringify({ name, error }));
}
process.exit(0);
