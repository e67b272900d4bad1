// A better-auth server as an application has one: e-mail and password, sessions in PostgreSQL.
// Prints its port once it listens. PLUGINS: "bearer", "admin", with commas.
import { createServer } from "node:http";

import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { admin, bearer } from "better-auth/plugins";
import pg from "pg";

const plugins = { admin, bearer };
const port = Number(process.env.PORT);
const options = {
  baseURL: `http://127.0.0.1:${port}`,
  secret: process.env.SECRET,
  database: new pg.Pool({
    host: process.env.DATABASE_HOST,
    user: process.env.DATABASE_USER,
    database: process.env.DATABASE_NAME,
    options: `-c search_path=${process.env.DATABASE_SCHEMA}`,
  }),
  emailAndPassword: { enabled: true },
  // All look-ups of a mesh come from one address.
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
  plugins: process.env.PLUGINS.split(",").filter(Boolean).map((name) => plugins[name]()),
};
await (await getMigrations(options)).runMigrations();

const server = createServer(toNodeHandler(betterAuth(options)));
server.listen(port, "127.0.0.1", () => console.log(port));
// It ends with whoever started it.
process.stdin.on("end", () => process.exit()).resume();
