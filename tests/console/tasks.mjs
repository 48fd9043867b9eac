// What people do at the console, each with the role that does it. Elements are found as a screen reader finds them: by role and name.

import { check, cue, KEYS, overflow, perform, signIn, URL_OF_GATEWAY, violations, visit } from "./harness.mjs";

const QUESTION = "Name the capital of France.";
const VIEWS = ["Playground", "Keys", "Use and limits", "Batches", "Models", "Tenants", "Audit"];
const DARK = { colorScheme: "dark" };
const NARROW = { viewport: { width: 360, height: 740 } };

async function ask(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  // It cannot be sent before the models are known.
  await page.locator("button:enabled", { hasText: "Send" }).waitFor();
  await page.keyboard.press("Enter");
}

const complete = (page) => page.getByText("The answer is complete.").waitFor({ state: "attached" });
const row = (page, name, scope = page) => scope.getByRole("row").filter({ has: page.getByRole("rowheader", { name }) });

async function readKey(page) {
  return (await page.getByRole("status", { name: "The new key" }).innerText()).trim();
}

/** The status that the API answers to a key, from outside the browser. */
async function statusOf(key) {
  return (await fetch(`${URL_OF_GATEWAY}/v1/models`, { headers: { Authorization: `Bearer ${key}` } })).status;
}

await perform({
  sign_in: {
    async act(page) {
      await page.goto(`${URL_OF_GATEWAY}/console`);
      await page.getByLabel("API key").fill("sk-wrong");
      await page.keyboard.press("Enter");
      const alert = page.getByRole("alert");
      await alert.waitFor();
      check(/Request req_/.test(await alert.innerText()), "a refusal names its request");
      await signIn(page, KEYS.member);
      await page.getByRole("heading", { level: 1, name: "Playground" }).waitFor();
      const kept = await page.evaluate(() => [document.cookie, localStorage.length, sessionStorage.length]);
      check(kept.join() === ",0,0", `scripts see what keeps the session: ${kept}`);
      await page.reload();
      await page.getByRole("heading", { level: 1, name: "Playground" }).waitFor();
    },
  },

  sign_in_by_single_sign_on: {
    async act(page) {
      page.mayLeave = true;
      await page.goto(`${URL_OF_GATEWAY}/console`);
      await page.getByRole("link", { name: /^Sign in with/ }).click();
      await page.getByRole("heading", { level: 1, name: "Playground" }).waitFor();
      await page.getByText("ada@acme.example", { exact: true }).waitFor();
      await visit(page, "Keys");
      await page.getByText("You use no key").waitFor();
      await page.getByRole("button", { name: "Sign out" }).click();
      await page.getByLabel("API key").waitFor();
      await page.goto(`${URL_OF_GATEWAY}/console#/sign-in?error=denied`);
      await page.getByText("nothing here is open to you").waitFor();
    },
  },

  stream_with_reasoning: {
    async act(page) {
      await signIn(page, KEYS.member);
      await ask(page, QUESTION);
      await complete(page);
      const answer = page.getByRole("article").last();
      const reasoning = await answer.getByRole("group").innerText();
      check(reasoning.includes("The user asks"), `the reasoning is: ${reasoning}`);
      check((await answer.innerText()).includes("Paris"), "the answer has the model's text");
      check(!(await answer.locator(".answer").innerText()).includes("The user asks"), "reasoning stands apart");
      check((await answer.innerText()).includes("tokens in"), "it says what the call cost");
    },
  },

  stop_a_stream: {
    async act(page) {
      await signIn(page, KEYS.member);
      await ask(page, "Count without end.");
      await page.getByText("one two").waitFor();
      await page.getByRole("button", { name: "Stop" }).click();
      await page.getByText("Stopped.").waitFor();
      return cue("aborted");
    },
  },

  answer_a_tool_call: {
    async act(page) {
      await signIn(page, KEYS.member);
      const tools = page.getByLabel("Tools", { exact: true });
      await tools.fill('[\n  {"type": }\n]');
      await page.getByText("Line 2 is not valid JSON.").first().waitFor();
      await page.getByLabel("Message", { exact: true }).fill("Weather in Paris?");
      check(await page.getByRole("button", { name: "Send" }).isDisabled(), "what is no JSON is not sent");
      await page.getByRole("button", { name: "Remove tools" }).click();
      await page.getByRole("button", { name: "Start from an example of tools" }).click();
      await ask(page, "Weather in Paris?");
      await page.getByLabel("What get_weather returns").fill("18 degrees, sunny");
      check((await page.getByRole("region", { name: "Arguments of get_weather" }).innerText()).includes('"city": "Paris"'), "arguments");
      await page.getByRole("button", { name: "Send result" }).click();
      await page.getByText("It is 18 degrees, sunny.").waitFor();
    },
  },

  answer_by_a_schema: {
    async act(page) {
      await signIn(page, KEYS.member);
      await page.getByLabel("Answer").selectOption("JSON by a schema");
      await page.getByRole("button", { name: "Start from an example of schema" }).click();
      await ask(page, "Plan it.");
      await complete(page);
      const text = await page.getByRole("article").last().locator(".answer").innerText();
      return JSON.parse(text);
    },
  },

  show_as_code: {
    async act(page) {
      await signIn(page, KEYS.member, "#/playground?effort=low&temperature=0.5");
      await page.getByLabel("Message", { exact: true }).fill("It's 5 o'clock.");
      await page.getByRole("button", { name: "Show as code" }).click();
      const curl = await page.getByRole("region", { name: "curl command" }).innerText();
      await page.getByRole("button", { name: "Python" }).click();
      const python = await page.getByRole("region", { name: "Python program" }).innerText();
      return cue("programs", { curl, python });
    },
  },

  read_what_went_wrong: {
    async act(page) {
      await signIn(page, KEYS.member, "#/playground?tokens=0");
      await ask(page, QUESTION);
      const alert = page.getByRole("article").getByRole("alert");
      await alert.waitFor();
      check(/max_completion_tokens[^]*Request req_/.test(await alert.innerText()), await alert.innerText());
      await page.getByLabel("Output tokens").fill("100");
      await ask(page, QUESTION);
      await page.getByText("is Paris.").first().waitFor();
    },
  },

  see_own_key_and_use: {
    async act(page) {
      await signIn(page, KEYS.member);
      await visit(page, "Keys");
      await row(page, "notebook").getByText("active").waitFor();
      check(!(await page.getByRole("button", { name: "Create key" }).count()), "a member makes no keys");
      await visit(page, "Use and limits");
      const meter = page.getByRole("meter", { name: /^Requests per minute/ });
      await meter.waitFor();
      check(/ of 1,000/.test(await meter.getAttribute("aria-valuetext")), "use against a limit");
      check(!(await page.getByRole("link", { name: "Tenants" }).count()), "a member administers nothing");
      await page.goto(`${URL_OF_GATEWAY}/console#/tenants`);
      await page.getByRole("heading", { level: 1, name: "Not here" }).waitFor();
    },
  },

  cancel_a_batch: {
    async act(page) {
      const id = await cue("batch");
      await signIn(page, KEYS.member);
      await visit(page, "Batches");
      await row(page, id).getByRole("progressbar", { name: "Done" }).waitFor();
      await page.getByRole("button", { name: `Cancel ${id}` }).click();
      await page.getByRole("button", { name: "Cancel it" }).click();
      await row(page, id).getByText("cancelled").waitFor();
    },
  },

  create_rotate_and_revoke_a_key: {
    async act(page) {
      await signIn(page, KEYS.admin, "#/keys");
      await page.getByRole("button", { name: "Create key" }).click();
      await page.getByLabel("Name").fill("nightly report");
      await page.getByRole("dialog").getByLabel("Tenant").selectOption("acme");
      await page.getByLabel("Tokens per day").fill("1000000");
      await page.getByRole("button", { name: "Create", exact: true }).click();
      const made = await readKey(page);
      check((await statusOf(made)) === 200, "the new key works");
      await page.getByRole("button", { name: "I have it" }).click();
      await row(page, "nightly report").getByText("active").waitFor();
      check(!(await page.content()).includes(made), "a key is shown once");

      await page.getByRole("button", { name: "Rotate nightly report" }).click();
      await page.getByLabel("The old key stops working").selectOption("At once");
      await page.getByRole("button", { name: "Rotate", exact: true }).click();
      const rotated = await readKey(page);
      check(rotated !== made && (await statusOf(rotated)) === 200, "its successor works");
      await page.getByRole("button", { name: "I have it" }).click();

      await page.getByLabel("Tenant").selectOption("acme");
      const active = row(page, "nightly report").filter({ hasText: "active" });
      await active.getByRole("button", { name: "Revoke nightly report" }).click();
      await page.getByRole("button", { name: "Revoke", exact: true }).click();
      await active.waitFor({ state: "detached" });
      await page.getByLabel("Show revoked keys").check();
      await row(page, "nightly report").filter({ hasText: "revoked" }).first().waitFor();
      check(page.url().includes("tenant=acme") && page.url().includes("revoked=yes"), "what is shown is in the address");
      return cue("refused", { key: rotated });
    },
  },

  watch_models: {
    async act(page) {
      await signIn(page, KEYS.admin);
      await page.getByRole("heading", { level: 1, name: "Models" }).waitFor();
      const model = page.getByRole("region", { name: "scripted-model" });
      await row(page, "gpu-node-1", model).getByText("ready").waitFor();
      await row(page, "gpu-node-2", model).getByText("45%").waitFor();
      await model.getByRole("img", { name: /^Output tokens\/s in the last/ }).waitFor();
      await cue("engine fails");
      const trouble = page.getByRole("region", { name: "What does not run, and why" });
      await trouble.getByText("It does not fit its GPUs.").waitFor();
      await trouble.getByText("No node has room.").waitFor();
      await row(page, "gpu-node-2", model).getByText("failed").waitFor();
    },
  },

  look_at_tenants: {
    async act(page) {
      await signIn(page, KEYS.admin, "#/tenants");
      await row(page, "acme").getByRole("meter").waitFor();
      await page.getByRole("button", { name: "Limits of acme" }).click();
      await page.getByRole("dialog").getByRole("meter", { name: "Requests per minute" }).waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor({ state: "detached" });
      check(await page.getByRole("button", { name: "Limits of acme" }).evaluate((it) => it === document.activeElement), "focus returns");
    },
  },

  search_the_audit: {
    async act(page) {
      await signIn(page, KEYS.admin, "#/audit");
      await page.getByRole("rowheader").first().waitFor();
      await page.getByLabel("Contains").fill("key.revoke");
      const found = (kind) => page.getByRole("table").getByText(kind, { exact: true });
      await found("key.revoke").first().waitFor();
      check((await found("key.create").count()) === 0, "only what contains it is shown");
      await page.reload();
      await found("key.revoke").first().waitFor();
      check((await page.getByLabel("Contains").inputValue()) === "key.revoke", "the search is in the address");
      await page.getByLabel("Contains").fill("nothing of the kind");
      await page.getByText("Nothing found").waitFor();
    },
  },

  sign_out: {
    async act(page) {
      await signIn(page, KEYS.member);
      const before = await page.context().cookies();
      await page.getByRole("button", { name: "Sign out" }).click();
      await page.getByLabel("API key").waitFor();
      await page.goBack();
      await page.getByLabel("API key").waitFor();
      await page.context().addCookies(before);
      await page.reload();
      await page.getByLabel("API key").waitFor();
    },
  },

  session_that_ends: {
    async act(page) {
      await signIn(page, KEYS.brief);
      await ask(page, QUESTION);
      await complete(page);
      await cue("revoke brief");
      // Its heading may be gone before it is looked for.
      await page.getByRole("link", { name: "Keys", exact: true }).click();
      await page.getByText("Your session has ended").waitFor();
      await page.getByLabel("API key").fill(KEYS.member);
      await page.keyboard.press("Enter");
      await visit(page, "Playground");
      await page.getByText("Ask something").waitFor(); // another's conversation is nobody else's
    },
  },

  keyboard_alone: {
    async act(page) {
      await page.goto(`${URL_OF_GATEWAY}/console`);
      await page.getByLabel("API key").focus();
      await page.keyboard.type(KEYS.admin);
      await page.keyboard.press("Enter");
      await page.getByRole("heading", { level: 1, name: "Models" }).waitFor();
      const focused = () => page.evaluate(() => document.activeElement.textContent);
      check((await focused()) === "Models", `a view's heading has the focus, not ${await focused()}`);
      while (!(await focused()).startsWith("Skip")) await page.keyboard.press("Shift+Tab");
      await page.keyboard.press("Enter");
      check((await page.evaluate(() => document.activeElement.id)) === "main", "one key leads past the navigation");
      while (!(await focused()).startsWith("Skip")) await page.keyboard.press("Shift+Tab");
      while ((await focused()) !== "Keys") await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
      await page.getByRole("heading", { level: 1, name: "Keys" }).waitFor();
      check((await focused()) === "Keys", "the next heading has it");
      await page.getByRole("rowheader").first().waitFor();
      await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
      await page.getByRole("dialog").waitFor();
      check((await page.evaluate(() => document.activeElement.tagName)) === "INPUT", "a dialog's first field has it");
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor({ state: "detached" });
      check((await focused()) === "Create key", "and gives it back");
    },
  },

  reduced_motion: {
    options: { reducedMotion: "reduce" },
    async act(page) {
      await signIn(page, KEYS.member);
      const moving = await page.evaluate(() =>
        [...document.styleSheets]
          .flatMap((sheet) => [...sheet.cssRules])
          .filter((rule) => !(rule instanceof CSSMediaRule) && /transition|animation/.test(rule.cssText)),
      );
      check(!moving.length, "nothing moves outside of prefers-reduced-motion: no-preference");
    },
  },

  accessible_in_light: { act: (page) => accessible(page) },
  accessible_in_dark_at_360_px: { options: { ...DARK, ...NARROW }, act: (page) => accessible(page) },
});

/** Every view and dialog without a violation, and no wider than the window. */
async function accessible(page) {
  const found = {};
  const look = async (name) => {
    found[name] = await violations(page);
    const wider = await overflow(page);
    if (wider > 0) found[name].push(`${wider} px wider than the window`);
  };
  await page.goto(`${URL_OF_GATEWAY}/console`);
  await page.getByLabel("API key").waitFor();
  await look("Sign in");
  await signIn(page, KEYS.admin);
  for (const title of VIEWS) {
    await visit(page, title);
    await page.waitForFunction(() => !document.querySelector(".waiting"));
    if (title === "Playground") {
      await ask(page, QUESTION);
      await complete(page);
    }
    await look(title);
  }
  await page.goto(`${URL_OF_GATEWAY}/console#/keys`);
  await page.getByRole("button", { name: "Create key" }).click();
  await look("Create key");
  return found;
}
