"""The page that shows runs and products, and the server that `subpixel browse` starts for it.

`web/` holds the page's sources, `static/` what `npm run build` makes of them: the same files are served here and copied
into a bucket by `subpixel publish`.
"""
