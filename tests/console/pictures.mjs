// Photographs for the README: what an operator sees, and what a member does.

import { perform, signIn, KEYS } from "./harness.mjs";

const SIZE = { viewport: { width: 1200, height: 800 }, deviceScaleFactor: 1.5 };
const shoot = (page, name) => page.screenshot({ path: `${process.env.PICTURES}/${name}.png` });

await perform({
  models: {
    options: SIZE,
    async act(page) {
      await signIn(page, KEYS.admin, "#/models?minutes=15");
      await page.getByRole("img").first().waitFor();
      await page.waitForTimeout(2500); // the next look at the fleet
      await shoot(page, "models");
    },
  },
  playground: {
    options: { ...SIZE, colorScheme: "dark" },
    async act(page) {
      await signIn(page, KEYS.research, "#/playground?effort=low");
      await page.getByLabel("Message", { exact: true }).fill("When does prefix caching pay off?");
      await page.locator("button:enabled", { hasText: "Send" }).waitFor();
      await page.keyboard.press("Enter");
      await page.getByText("The answer is complete.").waitFor({ state: "attached" });
      await page.evaluate(() => document.activeElement.blur());
      await shoot(page, "playground");
    },
  },
});
