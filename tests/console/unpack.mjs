// Chromium out of its package, into the folder that TMPDIR names: the browser, and the libraries that a bare machine lacks.

import { inflate } from "@sparticuz/chromium";

const packed = new URL("../bin/", import.meta.resolve("@sparticuz/chromium"));
for (const name of ["chromium.br", "al2023.tar.br"]) await inflate(decodeURIComponent(new URL(name, packed).pathname));
