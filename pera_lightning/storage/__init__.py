"""Files: read with bounds, written as a whole, never over what is somebody else's.

May import errors, requirements and what is as small. Open `whole_folder.py` for writing, `bounded_json.py` and
`schema.py` for reading; `recognition/` tells what a path holds, and alone knows how an adapter looks.
"""
