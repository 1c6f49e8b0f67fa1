"""The browser that tests look at pages with: Chromium where this machine has it, else None."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
