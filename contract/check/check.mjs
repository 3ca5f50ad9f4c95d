// Reads contract/asyncapi.json with the official AsyncAPI parser; exit code 1 on any error.
import { Parser, fromFile } from '@asyncapi/parser';

const path = new URL('../asyncapi.json', import.meta.url).pathname;
const { document, diagnostics } = await fromFile(new Parser(), path).parse();
const errors = diagnostics.filter(({ severity }) => severity === 0);
for (const { severity, message, path: at } of diagnostics) {
  console.log(`${['error', 'warning', 'note', 'hint'][severity]}: ${at.join('/')}: ${message}`);
}
if (errors.length > 0 || document === undefined) process.exit(1);
const messages = document.allMessages().all().map((message) => message.id());
console.log(`asyncapi ${document.version()}: ${messages.join(', ')}`);
