// Reads contract/asyncapi.json with the official AsyncAPI parser; exit code 1 on any error, and when the schema
// that the tests use is not the one that the parser has.
import { readFile } from 'node:fs/promises';
import { Parser, fromFile } from '@asyncapi/parser';

const here = (file) => readFile(new URL(file, import.meta.url), 'utf8');
const published = await here('node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json');
if ((await here('asyncapi-3.0.0.schema.json')) !== published) {
  console.log('error: asyncapi-3.0.0.schema.json is not that of @asyncapi/specs');
  process.exit(1);
}

const path = new URL('../asyncapi.json', import.meta.url).pathname;
const { document, diagnostics } = await fromFile(new Parser(), path).parse();
const errors = diagnostics.filter(({ severity }) => severity === 0);
for (const { severity, message, path: at } of diagnostics) {
  console.log(`${['error', 'warning', 'note', 'hint'][severity]}: ${at.join('/')}: ${message}`);
}
if (errors.length > 0 || document === undefined) process.exit(1);
const messages = document.allMessages().all().map((message) => message.id());
console.log(`asyncapi ${document.version()}: ${messages.join(', ')}`);
